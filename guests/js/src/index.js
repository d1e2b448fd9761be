// Guest built with the Spin SDK for JavaScript: a few paths, each of which
// shows one thing. guests/README.md lists what each path does.

addEventListener("fetch", (event) => event.respondWith(handle(event.request)));

async function handle(request) {
  const url = new URL(request.url);
  switch (url.pathname) {
    case "/":
      return new Response("Hello, world!\n", { headers: { "content-type": "text/plain" } });
    case "/echo":
      return new Response(request.body);
    case "/echo-request":
      return Response.json({ method: request.method, uri: request.url, headers: [...request.headers] });
    case "/stream":
      return new Response(chunks(Number(url.searchParams.get("chunks") ?? 3)));
    case "/fetch":
      return outbound(url.searchParams.get("url"));
    case "/trap":
      throw new Error("this guest was asked to fail");
    default:
      return new Response(`this guest has no ${url.pathname}\n`, { status: 404 });
  }
}

function chunks(count) {
  let number = 0;
  const encoder = new TextEncoder();
  return new ReadableStream({
    pull(controller) {
      if (number === count) return controller.close();
      controller.enqueue(encoder.encode(`chunk ${number++}\n`));
    },
  });
}

async function outbound(url) {
  try {
    const response = await fetch(url);
    return Response.json({ ok: { status: response.status, body: await response.text() } });
  } catch (error) {
    return Response.json({ error: String(error) });
  }
}
