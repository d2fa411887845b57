// Guides come before the pages and names that mention the same words.
const GUIDES = ["own_photos", "see_in_half_an_hour", "training/13_researchers"];
var Scorer = {
  score: ([page, title, anchor, text, score]) => score + (GUIDES.includes(page) ? 30 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
