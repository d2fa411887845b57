// The guide comes before pages and names that mention the same words; else as Sphinx does it.
var Scorer = {
  score: ([page, title, anchor, text, score]) => score + (page === "own_photos" ? 30 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
