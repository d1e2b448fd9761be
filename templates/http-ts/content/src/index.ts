addEventListener("fetch", (event) => {
  const fetched = event as FetchEvent;
  fetched.respondWith(handle(fetched.request));
});

/** Answers every request that the manifest's route leads here. */
async function handle(request: Request): Promise<Response> {
  return new Response("Hello from {{project-name}}!\n");
}
