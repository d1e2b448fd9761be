/* A CGI program: the request arrives in environment variables and on standard
 * input, the answer leaves on standard output. */
#include <stdio.h>
#include <stdlib.h>

static const char *variable(const char *name) {
  const char *value = getenv(name);
  return value == NULL ? "" : value;
}

int main(int argc, char **argv) {
  printf("Content-Type: text/plain\n\n");
  printf("Hello from C\n");
  printf("method: %s\n", variable("REQUEST_METHOD"));
  printf("path: %s\n", variable("PATH_INFO"));
  printf("query: %s\n", variable("QUERY_STRING"));
  for (int number = 0; number < argc; number++) {
    printf("argument %d: %s\n", number, argv[number]);
  }
  int byte;
  while ((byte = getchar()) != EOF) {
    putchar(byte);
  }
  fprintf(stderr, "a line for the log\n");
  return 0;
}
