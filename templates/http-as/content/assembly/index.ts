// A CGI program: the request arrives in environment variables and on standard input, the
// answer leaves on standard output, first its headers, then an empty line, then its body.

console.log("Content-Type: text/plain\n");
console.log("Hello from {{project-name}}!");
