// What a screen reader needs and the theme does not say.
addEventListener("DOMContentLoaded", () => {
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
