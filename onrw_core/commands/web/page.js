"use strict";

// The page of `onrw serve`: sends a dropped image to the server on this machine, and shows the report that comes back.

const [drop, file, state, result, save] = ["drop", "file", "status", "result", "save"]
  .map((id) => document.getElementById(id));
const meta = (name) => document.querySelector(`meta[name="${name}"]`).content;

async function read(image) {
  const mostBytes = Number(meta("most-bytes"));
  result.replaceChildren();
  save.hidden = true;
  if (image.size > mostBytes) {
    state.textContent = `${image.name}: larger than ${Math.floor(mostBytes / 1e6)} MB; scale it down first.`;
    return;
  }
  state.textContent = `Reading ${image.name} ...`;
  try {
    const answer = await fetch("read", {
      method: "POST",
      headers: {
        "Content-Type": "application/octet-stream",
        "X-Token": meta("token"),
        "X-File-Name": encodeURIComponent(image.name),
      },
      body: image,
    });
    const text = await answer.text();
    state.textContent = answer.ok ? "" : text;
    if (answer.ok) show(text, image.name);
  } catch {
    state.textContent = "The server does not answer; start it again with: onrw serve";
  }
}

function show(report, name) {
  const parsed = new DOMParser().parseFromString(report, "text/html");
  result.replaceChildren(...parsed.querySelector("main").childNodes);
  result.className = parsed.querySelector("main").className;
  URL.revokeObjectURL(save.href);
  save.href = URL.createObjectURL(new Blob([report], { type: "text/html" }));
  save.download = `${name.replace(/\.[^.]*$/, "")}-report.html`;
  save.hidden = false;
}

file.addEventListener("change", () => {
  if (file.files.length) read(file.files[0]);
  file.value = ""; // so that the same image may be chosen again
});
for (const type of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(type, (event) => {
    event.preventDefault(); // an image dropped beside the field would replace the page
    drop.classList.toggle("over", type === "dragover");
    if (type === "drop" && event.dataTransfer.files.length) read(event.dataTransfer.files[0]);
  });
}
