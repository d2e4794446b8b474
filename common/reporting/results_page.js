"use strict";

// The filter hides the rows of the recipe tables that do not contain the typed text.
const filter = document.querySelector(".filter");
if (filter) {
  const input = filter.querySelector("input");
  const rows = [...document.querySelectorAll(".recipes tbody tr")];
  const apply = () => {
    const wanted = input.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    const shown = rows.filter((row) => !row.hidden).length;
    filter.querySelector("p").textContent = `${shown} of ${rows.length} rows shown`;
  };
  input.addEventListener("input", apply);
  filter.hidden = false;
  apply();
}

// The viewer of each attack shows one picture of the table below it, enlarged.
for (const examples of document.querySelectorAll(".examples")) {
  const viewer = examples.querySelector(".viewer");
  const picture = viewer.querySelector(".picture");
  const select = viewer.querySelector("select");
  const slider = viewer.querySelector("input");
  const [head, ...rows] = examples.querySelectorAll(".pictures tr");
  const show = () => {
    const column = slider.valueAsNumber + 1;
    const cell = rows[select.selectedIndex].cells[column];
    const epsilon = head.cells[column].textContent;
    const said = cell.querySelector(".said").textContent;
    slider.setAttribute("aria-valuetext", epsilon);
    viewer.querySelector(".epsilon").textContent = epsilon;
    picture.setAttribute("viewBox", cell.querySelector("svg").getAttribute("viewBox"));
    const image = select.selectedOptions[0].textContent;
    picture.setAttribute("aria-label", `${image} at epsilon ${epsilon}`);
    viewer.querySelector(".prediction").textContent = `The network says: ${said}`;
  };
  select.addEventListener("change", show);
  slider.addEventListener("input", show);
  viewer.hidden = false;
  examples.querySelector("details").open = false;
  show();
}
