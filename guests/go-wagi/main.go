// A CGI program: the request arrives in environment variables and on standard
// input, the answer leaves on standard output.
package main

import (
	"fmt"
	"io"
	"os"
)

func main() {
	fmt.Print("Content-Type: text/plain\n\n")
	fmt.Println("Hello from Go")
	fmt.Println("method:", os.Getenv("REQUEST_METHOD"))
	fmt.Println("path:", os.Getenv("PATH_INFO"))
	fmt.Println("query:", os.Getenv("QUERY_STRING"))
	for number, argument := range os.Args {
		fmt.Printf("argument %d: %s\n", number, argument)
	}
	if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "a line for the log")
}
