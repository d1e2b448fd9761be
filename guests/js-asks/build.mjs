// Bundles the program and its packages into the one file that j2w takes.
import { build } from "esbuild";
import { SpinEsbuildPlugin } from "@spinframework/build-tools/plugins/esbuild/index.js";

await build({
  entryPoints: ["src/index.js"],
  outfile: "build/bundle.js",
  bundle: true,
  format: "esm",
  platform: "node",
  minify: true,
  sourcemap: false,
  plugins: [await SpinEsbuildPlugin()],
});
