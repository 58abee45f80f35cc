// What every page has: times in the reader's zone, buttons that copy, the switch between light and dark.
"use strict";

const ageText = (seconds) => {
  if (seconds < 10) return "just now";
  const steps = [["s", 60], ["min", 60], ["h", 24], ["days", Infinity]];
  let value = seconds;
  for (const [unit, limit] of steps) {
    if (value < limit) return `${Math.floor(value)} ${unit === "days" && Math.floor(value) === 1 ? "day" : unit} ago`;
    value /= limit;
  }
};

const showTimes = (within) => {
  for (const element of within.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    element.textContent = "age" in element.dataset ? ageText((Date.now() - moment) / 1000)
      : moment.toLocaleString(undefined, {dateStyle: "medium", timeStyle: "short"});
  }
};

const copyFrom = async (button) => {
  const text = button.parentElement.querySelector("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch { // without HTTPS there is no clipboard: select, so that the reader can copy
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
};

document.addEventListener("click", (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) copyFrom(copy);
  if (event.target.closest("#theme")) window.switchTheme();
  for (const open of document.querySelectorAll("details.confirm[open]")) {
    if (!open.contains(event.target)) open.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const open of document.querySelectorAll("details.confirm[open]")) {
    open.open = false;
    open.querySelector("summary").focus();
  }
});
for (const element of document.querySelectorAll("[data-copy], #theme")) element.hidden = false;
showTimes(document);
setInterval(() => showTimes(document), 30000);
const wrong = document.querySelector("[aria-invalid=true]");
if (wrong) wrong.focus();
window.showTimes = showTimes;
