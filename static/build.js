// One build's page: its state, and its log as it grows.
// Each piece of the log comes with the byte after it. Whoever comes back with that number misses nothing and hears
// nothing twice; the server ends each stream after a while, and the browser comes back.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const log = byId("log"), said = byId("log-state"), pause = byId("pause");
  let source = null, offset = 0, paused = false, complete = false, wait = 1000, timer = 0;

  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const append = (text) => {
    const follow = atEnd();
    log.append(document.createTextNode(text));
    if (follow) log.scrollTop = log.scrollHeight;
  };
  const say = (text) => { if (said.textContent !== text) said.textContent = text; };

  const open = () => {
    if (paused || complete) return;
    source = new EventSource(`${log.dataset.url}?offset=${offset}`);
    source.onopen = () => { wait = 1000; say("The log follows the build."); };
    source.onmessage = (event) => {
      const next = Number(event.lastEventId);
      if (next <= offset) return;
      offset = next;
      append(`${event.data}\n`);
    };
    source.addEventListener("end", () => {
      complete = true;
      source.close();
      log.dataset.complete = "yes";
      pause.hidden = true;
      say(offset ? "This is the whole log." : "The log is empty.");
      refresh();
    });
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return; // it comes back by itself, with the last id
      say("The connection is lost; it is tried again.");
      clearTimeout(timer);
      timer = setTimeout(open, wait);
      wait = Math.min(wait * 2, 30000);
    };
  };
  const close = () => { clearTimeout(timer); if (source) source.close(); };

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
    close();
    if (paused) say("The log is paused."); else open();
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => { if (event.persisted) open(); });

  // Search: each "Next" selects the next place, and begins again behind the last.
  let place = 0;
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = byId("find").value.toLowerCase();
    const text = log.textContent.toLowerCase();
    if (!wanted) { byId("found").textContent = ""; return; }
    const count = text.split(wanted).length - 1;
    let at = text.indexOf(wanted, place);
    if (at < 0) at = text.indexOf(wanted);
    byId("found").textContent = count ? `${text.slice(0, at).split(wanted).length} of ${count}` : "not found";
    if (at < 0) return;
    place = at + wanted.length;
    const range = document.createRange();
    const end = (node, from) => {
      for (const child of log.childNodes) {
        if (from <= child.length) return [child, from];
        from -= child.length;
      }
      return [log, log.childNodes.length];
    };
    range.setStart(...end(log, at));
    range.setEnd(...end(log, place));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    const box = range.getBoundingClientRect();
    log.scrollTop += box.top - log.getBoundingClientRect().top - log.clientHeight / 3;
  });
  byId("find").addEventListener("input", () => { place = 0; byId("found").textContent = ""; });

  // The state: fetched while the build goes on and somebody looks.
  const progress = byId("progress");
  let status = "";
  const refresh = async () => {
    if (progress.dataset.ended === "yes" || document.hidden || progress.querySelector("details[open]")) return;
    try {
      const answer = await fetch(progress.dataset.url, {headers: {Accept: "application/json"}});
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) return;
      const state = await answer.json();
      if (progress.querySelector("details[open]") || progress.contains(document.activeElement) && !state.ended) return;
      progress.innerHTML = state.html; // the server's own fragment, with everything in it escaped
      progress.dataset.ended = state.ended ? "yes" : "no";
      window.showTimes(progress);
      if (status !== state.status) byId("status-said").textContent = `The build is ${state.status}.`;
      status = state.status;
    } catch { /* the next time */ }
  };
  byId("search").hidden = false;
  pause.hidden = false;
  setInterval(refresh, 2000);
  open();
})();
