// A guide comes before pages and names that mention the same words; else as Sphinx does it.
const guides = {
  own_photos: /photo|picture|without training/, app: /search page|browser/,
  "method/05_adapters": /own loss|any loss|which loss/, glossary: /^what (is|are|does)/,
}
const asked = (new URLSearchParams(location.search).get("q") ?? "").toLowerCase()
var Scorer = {
  score: ([page, title, anchor, text, score]) => score + (guides[page]?.test(asked) ? 30 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
