// Typesets what pymdownx.arithmatex marks as formulas.
document.querySelectorAll(".arithmatex").forEach((element) => {
  const source = element.textContent;
  katex.render(source.slice(2, -2), element, {
    displayMode: source.startsWith("\\["),
    throwOnError: false,
  });
});
