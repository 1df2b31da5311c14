// A click, or an arrow key, in an area of rows and columns chooses one of them. Which one is told to Python; the page is
// drawn anew there, so listeners stay on what lasts, and the focus goes back to where it was.
let focused = null;
const place = (area) => ["rows", "columns", "row", "column"].map((name) => Number(area.dataset[name]));
const choose = (area, row, column) => {
  const [rows, columns] = place(area);
  const inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
  trigger("select", { row: inside(row, rows), column: inside(column, columns) });
};
element.addEventListener("click", (event) => {
  const area = event.target.closest("[data-rows]");
  if (!area) return;
  const [rows, columns] = place(area);
  const box = area.getBoundingClientRect();
  const across = (event.clientX - box.left) / box.width, up = (box.bottom - event.clientY) / box.height;
  choose(area, Math.floor(up * rows), Math.floor(across * columns));
});
element.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
  const area = event.target.closest("[data-rows]");
  if (!step || !area) return;
  event.preventDefault();
  const [, , row, column] = place(area);
  choose(area, row + step[0], column + step[1]);
});
element.addEventListener("focusin", (event) => { focused = event.target.closest("[data-rows]")?.dataset.name ?? null; });
element.addEventListener("focusout", () => { if (element.querySelector("[data-rows]")) focused = null; });
watch("value", () => {
  if (focused) element.querySelector(`[data-name="${focused}"]`)?.focus({ preventScroll: true });
});
