// Live updates: regions with data-live are fetched again and put in place when the box says that something
// changed (GET /events). Its value names the topics a region hangs on, none means any. data-live-name is
// what it is called when it changed; with data-live-quiet nobody is told.
//
// Nothing is taken from under anybody's hands: a region with the focus, a selection, something typed or an
// open dialog waits until that is over.
"use strict";
(() => {
  const regions = () => document.querySelectorAll("[data-live][id]");
  if (!window.EventSource || regions().length === 0) return;

  const spoken = document.createElement("p");
  spoken.className = "unseen";
  spoken.setAttribute("role", "status");
  document.body.append(spoken);
  const say = (text) => { spoken.textContent = text; };

  const notLive = document.createElement("p");
  notLive.className = "not-live";
  notLive.hidden = true;
  document.body.append(notLive);
  const stale = (text) => {
    if (notLive.hidden) say(text);
    notLive.textContent = text + " ";
    const again = document.createElement("a");
    again.href = location.href;
    again.textContent = "Load it again";
    notLive.append(again);
    notLive.hidden = false;
  };

  let source = null, wait = 5000, timer = 0, due = new Set(), fetching = false, lost = 0, interrupted = false;

  const inUse = (region) => {
    if (region.contains(document.activeElement) && document.activeElement !== document.body) return true;
    if (region.matches("dialog[open]") || region.querySelector("dialog[open]")) return true;
    const chosen = getSelection();
    if (!chosen.isCollapsed && chosen.containsNode(region, true)) return true;
    return [...region.querySelectorAll("input, textarea, select")].some((field) => {
      if (field.type === "checkbox" || field.type === "radio") return field.checked !== field.defaultChecked;
      if (field.options) return [...field.options].some((o) => o.selected !== o.defaultSelected) && field.selectedIndex > 0;
      return field.type !== "hidden" && field.value !== field.defaultValue;
    });
  };

  // What people opened stays open.
  const adopt = (region, fresh) => {
    const opened = [...region.querySelectorAll("details")].map((d) => d.open);
    [...fresh.querySelectorAll("details")].forEach((d, i) => { d.open = opened[i] || d.open; });
    if (navigator.clipboard) fresh.querySelectorAll("button.copy").forEach((b) => { b.hidden = false; });
  };

  const without = (element) => {
    const copy = element.cloneNode(true);
    copy.querySelectorAll("details").forEach((d) => d.removeAttribute("open"));
    copy.querySelectorAll("button.copy").forEach((b) => b.removeAttribute("hidden"));
    return copy.outerHTML;
  };

  const refresh = async () => {
    if (fetching || due.size === 0 || document.hidden) return;
    fetching = true;
    const topics = due;
    due = new Set();
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
      if (answer.redirected) { stop("You are signed out."); return; }
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!page.querySelector("nav.sections")) { stop("You are signed out."); return; }
      const changed = [];
      for (const region of regions()) {
        const fresh = page.getElementById(region.id);
        const about = region.dataset.live.split(" ").filter(Boolean);
        if (!fresh || about.length && !topics.has("*") && !about.some((t) => topics.has(t))) continue;
        if (without(region) === without(fresh)) continue;
        if (inUse(region)) { due = new Set([...due, ...(about.length ? about : ["*"])]); continue; }
        adopt(region, fresh);
        region.replaceWith(document.adoptNode(fresh));
        if (fresh.dataset.liveName && fresh.dataset.liveQuiet === undefined) changed.push(fresh.dataset.liveName);
      }
      const counts = page.querySelectorAll("nav.sections a");
      document.querySelectorAll("nav.sections a").forEach((link, i) => {
        if (counts[i] && counts[i].pathname === link.pathname && counts[i].innerHTML !== link.innerHTML) link.innerHTML = counts[i].innerHTML;
      });
      if (changed.length) say("Changed: " + changed.join(", ") + ".");
    } catch {
      topics.forEach((t) => due.add(t)); // the connection: tried again with the next event
    } finally {
      fetching = false;
    }
  };
  // A burst of events is one fetch; what waits for somebody's hands is looked at again when they moved on.
  const soon = () => { clearTimeout(timer); timer = setTimeout(refresh, 250); };
  document.addEventListener("focusout", () => { if (due.size) soon(); });
  setInterval(() => { if (due.size) refresh(); }, 5000);

  const stop = (why) => {
    close();
    wait = 0;
    stale(why);
  };
  const close = () => {
    if (source) source.close();
    source = null;
  };
  const open = () => {
    if (source || wait === 0 || document.hidden) return;
    source = new EventSource("/events");
    source.addEventListener("open", () => {
      clearTimeout(lost);
      lost = 0;
      wait = 5000;
      if (interrupted) { interrupted = false; due.add("*"); soon(); }
      if (!notLive.hidden) { notLive.hidden = true; say("Live again."); }
    });
    source.addEventListener("change", (event) => { event.data.split(" ").forEach((t) => due.add(t)); soon(); });
    source.addEventListener("end", (event) => {
      if (event.data === "signed-out") stop("You are signed out.");
    });
    source.addEventListener("error", () => {
      interrupted = true;
      lost ||= setTimeout(() => stale("Not live: this page may be out of date."), 10000);
      if (source && source.readyState === EventSource.CLOSED) { // the browser gives up on refusals
        close();
        setTimeout(open, wait);
        wait = Math.min(2 * wait, 60000);
      }
    });
  };
  // Who looks at another window needs no stream; browsers have few connections for a box.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { close(); clearTimeout(lost); lost = 0; } else { interrupted = true; open(); }
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => { if (event.persisted) { interrupted = true; open(); } });
  open();
})();
