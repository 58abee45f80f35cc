// A part of a page that changes while a build goes on: as long as somebody looks, it is fetched again.
"use strict";
(() => {
  const list = document.getElementById("refreshed");
  const refresh = async () => {
    if (document.hidden || list.contains(document.activeElement)) return;
    try {
      const answer = await fetch(location.href, {headers: {Accept: "text/html"}});
      if (!answer.ok || answer.redirected) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("refreshed");
      if (fresh) { list.replaceChildren(...fresh.childNodes); window.showTimes(list); }
    } catch { /* the next time */ }
  };
  setInterval(refresh, 5000);
})();
