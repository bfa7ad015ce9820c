// The conformance tests of HTTP/2 (h2spec), unchanged, against a server that speaks it without TLS: h2spec HOST PORT.
// What fails is printed, and the exit status says whether anything did.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/summerwind/h2spec"
	"github.com/summerwind/h2spec/config"
)

// A server that should have closed is waited for this long.
const patience = 2 * time.Second

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: h2spec HOST PORT")
		os.Exit(2)
	}
	port, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "h2spec: the port:", err)
		os.Exit(2)
	}
	passed, err := h2spec.Run(&config.Config{
		Host:         os.Args[1],
		Port:         port,
		Path:         "/",
		Timeout:      patience,
		MaxHeaderLen: 4000,
		Strict:       true,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "h2spec:", err)
	}
	if err != nil || !passed {
		os.Exit(1)
	}
}
