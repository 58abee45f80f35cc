// What would be built, beside the form while one types. One question at a time: an earlier one is given up.
"use strict";
(() => {
  const QUIET_MS = 700, APART_MS = 1500, REPOSITORY_MS = 2000;
  const form = document.getElementById("request"), preview = document.getElementById("preview");
  const said = document.getElementById("preview-said"), shown = document.getElementById("preview-plan");
  const value = (name) => (form.elements.namedItem(name)?.value || "").trim();
  const touched = new Set();
  let timer = 0, asking = null, askedAt = -Infinity, last = "";

  // What has to be there before there is anything to say.
  const isReady = () => ({
    registry: () => value("workflow") && value("step_id"),
    own: () => value("packages") || value("description"),
    repository: () => /^https?:\/\/[^/]+\/./.test(value("repository")),
  }[value("what")]?.());

  const say = (text) => { if (said.textContent !== text) said.textContent = text; };

  const mark = (name, text) => {
    const field = form.elements.namedItem(name);
    if (!(field instanceof HTMLElement) || field.type === "hidden") return false;
    const id = `${field.id}-error`;
    let note = document.getElementById(id);
    const about = (field.getAttribute("aria-describedby") || "").split(" ").filter((one) => one && one !== id);
    if (text && !note) {
      note = document.createElement("div");
      note.id = id;
      note.className = "invalid-feedback d-block";
      field.after(note);
    }
    if (note) { note.textContent = text; note.hidden = !text; }
    if (text) about.push(id);
    field.classList.toggle("is-invalid", Boolean(text));
    if (text) field.setAttribute("aria-invalid", "true"); else field.removeAttribute("aria-invalid");
    if (about.length) field.setAttribute("aria-describedby", about.join(" ")); else field.removeAttribute("aria-describedby");
    return true;
  };

  const show = (answer) => {
    const open = [...shown.querySelectorAll("details")].map((one) => one.open);
    shown.innerHTML = answer.html; // the server's own fragment, with everything in it escaped
    shown.querySelectorAll("details").forEach((one, index) => { if (open[index]) one.open = true; });
    const left = [...answer.others];
    for (const field of form.elements) {
      if (!field.name || field.type === "hidden" || field.type === "submit") continue;
      const wrong = answer.wrong[field.name] || "";
      if (!wrong || touched.has(field.name)) mark(field.name, wrong);
    }
    if (answer.html) say("This is what would be built.");
    else if (left.length) say(left.join(" "));
    else say("Something is missing, or wrong, in what is typed.");
  };

  const ask = async () => {
    if (asking) asking.abort();
    if (!isReady()) {
      shown.replaceChildren();
      say(value("what") === "folder" ? "“Show the plan” says what would be built of a folder." : "What would be built shows here as you type.");
      return;
    }
    const data = new FormData(form);
    data.delete("archive");
    const asked = JSON.stringify([...data]);
    if (asked === last) return;
    const mine = asking = new AbortController();
    askedAt = performance.now();
    preview.classList.add("stale");
    try {
      const answer = await fetch(form.dataset.preview, {method: "POST", body: data, signal: mine.signal, headers: {Accept: "application/json"}});
      if (answer.status === 401) { say("You are not logged in any more."); return; }
      if (answer.status === 429 || answer.status === 503) {
        const waitS = Math.min(Number(answer.headers.get("Retry-After")) || 10, 120);
        say(`Too much is asked at once; again in ${waitS} s.`);
        clearTimeout(timer);
        timer = setTimeout(ask, waitS * 1000);
        askedAt = performance.now() + waitS * 1000 - APART_MS; // nor earlier when one types on
        return;
      }
      if (!answer.ok) { say("What would be built cannot be told at the moment."); return; }
      show(await answer.json());
      last = asked;
    } catch (error) {
      if (error.name !== "AbortError") say("What would be built cannot be told at the moment.");
    } finally {
      if (asking === mine) { asking = null; preview.classList.remove("stale"); }
    }
  };
  const soon = () => {
    clearTimeout(timer);
    const quiet = value("what") === "repository" ? REPOSITORY_MS : QUIET_MS;
    timer = setTimeout(ask, Math.max(quiet, askedAt + APART_MS - performance.now()));
  };

  for (const kind of ["input", "change"]) {
    form.addEventListener(kind, (event) => { if (event.target.name) touched.add(event.target.name); soon(); });
  }
  form.addEventListener("submit", () => { clearTimeout(timer); if (asking) asking.abort(); });
  if (!shown.children.length && !form.querySelector("[aria-invalid=true]")) ask();
})();
