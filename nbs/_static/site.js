// What is linked is unfolded; and what a screen reader needs and the theme does not say.
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)))
  target?.closest("details")?.setAttribute("open", "")
  target?.scrollIntoView()
}
addEventListener("hashchange", unfold)
addEventListener("DOMContentLoaded", () => {
  unfold()
  for (const summary of document.querySelectorAll(".has-children > details > summary"))
    summary.setAttribute("aria-label", `Pages of ${summary.closest("li").firstChild.textContent}`)
  const named = "button.search-button-field, .admonition.hide > summary"  // their text says it
  for (const element of document.querySelectorAll(named)) element.removeAttribute("aria-label")
  const home = document.querySelector(".sidebar-primary-items__start > .sidebar-primary-item")
  home?.setAttribute("role", "navigation")
  home?.setAttribute("aria-label", "Home")
  for (const head of document.querySelectorAll("table th"))
    if (!head.textContent.trim()) head.outerHTML = `<td colspan="${head.colSpan}"></td>`
})
