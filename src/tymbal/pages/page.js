"use strict";
// One sound at a time.
document.addEventListener("play", (event) => {
  for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
}, true);
// Maps: a point with sound plays it; a label of the legend is shown alone until it is pressed again.
for (const map of document.querySelectorAll(".map")) {
  const said = map.querySelector("[aria-live]");
  const play = (point) => {
    const sound = document.getElementById(point.dataset.sound);
    sound.currentTime = 0;
    sound.play();
    said.textContent = "Playing: " + point.getAttribute("aria-label");
  };
  for (const point of map.querySelectorAll("[data-sound]")) {
    point.addEventListener("click", () => play(point));
    point.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); play(point); }
    });
  }
  const buttons = map.querySelectorAll(".legend button");
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const chosen = button.getAttribute("aria-pressed") === "true" ? null : button.dataset.group;
      for (const each of buttons) each.setAttribute("aria-pressed", String(each.dataset.group === chosen));
      for (const group of map.querySelectorAll("svg g[data-group]"))
        group.classList.toggle("dim", chosen !== null && group.dataset.group !== chosen);
    });
  }
}
