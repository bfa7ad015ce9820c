// The process that holds a pod's namespaces open, and the first process of a node: it does nothing but bury the orphans
// that the kernel hands it, until it is told to go.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGTERM, syscall.SIGINT)
	for {
		bury()
		if <-signals != syscall.SIGCHLD {
			return
		}
	}
}

// One signal may stand for many dead.
func bury() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err != syscall.EINTR && pid <= 0 {
			return
		}
	}
}
