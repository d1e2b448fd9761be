// The smallest CGI program, to know that the toolchain's output runs.
console.log("Content-Type: text/plain\n");
console.log("hello from AssemblyScript");
