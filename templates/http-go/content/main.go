// A CGI program: the request arrives in environment variables and on standard
// input, the answer leaves on standard output, first its headers, then an empty
// line, then its body.
package main

import (
	"fmt"
)

func main() {
	fmt.Print("Content-Type: text/plain\n\n")
	fmt.Println("Hello from {{project-name}}!")
}
