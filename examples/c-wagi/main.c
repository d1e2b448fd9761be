/* A CGI program: the request arrives in environment variables, the answer
 * leaves on standard output, first its headers, then an empty line, then its
 * body. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
  const char *path = getenv("PATH_INFO");
  const char *name = path != NULL && strlen(path) > 1 ? path + 1 : "world";
  printf("Content-Type: text/plain\n");
  printf("\n");
  printf("Hello, %s!\n", name);
  return 0;
}
