// An app that hands each question to its dependency: /ask?what=key-value, /count.
import { ask, count } from "wisp:composed/asker@1.0.0";

addEventListener("fetch", (event) => event.respondWith(handle(event.request)));

async function handle(request) {
  const url = new URL(request.url);
  switch (url.pathname) {
    case "/ask":
      return new Response(ask(url.searchParams.get("what") ?? ""));
    case "/count":
      return new Response(String(count()));
    default:
      return new Response(`this guest has no ${url.pathname}\n`, { status: 404 });
  }
}
