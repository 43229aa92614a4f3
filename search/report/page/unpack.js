// Plotly comes packed, which halves the page; the page's policy knows its digest as that of any other script.
async function unpack(name) {
  const packed = atob(document.getElementById(`${name}-packed`).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script); // runs at once
}
