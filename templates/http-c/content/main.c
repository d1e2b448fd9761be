/* A CGI program: the request arrives in environment variables and on standard
 * input, the answer leaves on standard output, first its headers, then an empty
 * line, then its body. */
#include <stdio.h>

int main(void) {
  printf("Content-Type: text/plain\n\n");
  printf("Hello from {{project-name}}!\n");
  return 0;
}
