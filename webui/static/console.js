// What pages do better with a script: modal dialogs, copy buttons, a clean address after an order.
"use strict";

// Dialogs come open from the server; showModal gives them focus, a backdrop and Escape.
for (const dialog of document.querySelectorAll("dialog[open]")) {
  const close = dialog.dataset.close;
  dialog.close();
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault();
    if (close) location.assign(close);
  });
  dialog.showModal();
  const wrong = dialog.querySelector("[aria-invalid=true]");
  if (wrong) wrong.focus();
}

// Copy buttons appear where the browser lets a page copy.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const text = button.parentElement.querySelector("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select and copy by hand";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});
if (navigator.clipboard) {
  for (const button of document.querySelectorAll("button.copy")) button.hidden = false;
}

// What an order did is said once, not again when the page is loaded again.
const address = new URL(location.href);
if (address.searchParams.has("done")) {
  address.searchParams.delete("done");
  address.searchParams.delete("about");
  history.replaceState(null, "", address);
}
