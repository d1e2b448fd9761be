addEventListener("fetch", (event) => event.respondWith(handle(event.request)));

/** Answers every request that the manifest's route leads here. */
async function handle(request) {
  return new Response("Hello from {{project-name}}!\n");
}
