// The machines: those that have every word stay while one types.
"use strict";
(() => {
  const field = document.getElementById("search"), table = document.getElementById("machines");
  if (!field || !table) return;
  const rows = [...table.tBodies[0].rows], said = document.getElementById("search-said");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = rows.filter((row) => {
      row.hidden = !words.every((word) => row.dataset.words.includes(word));
      return !row.hidden;
    });
    said.textContent = words.length ? `${kept.length} of ${rows.length} machines` : "";
  });
})();
