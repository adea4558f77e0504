// The JavaScript guest that is served, as a browser's worker would be: `/` and `/get/http:HOST:PORT/PATH`.
async function answer(request) {
  const path = new URL(request.url).pathname;
  if (path === "/") return new Response("hello from wasm\n");
  if (!path.startsWith("/get/")) return new Response("no such step\n", { status: 404 });
  const reply = await fetch(path.slice("/get/".length).replace(":", "://"));
  return new Response(`${reply.status} ${await reply.text()}`);
}

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));
