// A CGI program: the request arrives in environment variables and on standard
// input, the answer leaves on standard output, first its headers, then an empty
// line, then its body.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		fmt.Print("Status: 400\n\n")
		return
	}
	fmt.Print("Content-Type: text/plain\n\n")
	if os.Getenv("REQUEST_METHOD") == "POST" {
		fmt.Print(strings.ToUpper(string(body)))
		return
	}
	fmt.Println("Hello from Go!")
}
