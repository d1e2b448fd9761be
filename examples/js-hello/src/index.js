addEventListener("fetch", (event) => event.respondWith(hello(event.request)));

async function hello(request) {
  const name = new URL(request.url).pathname.slice(1) || "world";
  if (request.method === "POST") {
    const message = await request.json();
    return Response.json({ to: name, heard: message });
  }
  return new Response(`Hello, ${name}!\n`);
}
