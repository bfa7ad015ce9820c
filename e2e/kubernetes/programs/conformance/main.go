// The conformance suite of Gateway API as a program: its tests are its own, from its module, and so are its flags. It is
// built and started like the other programs of the test cluster, so nobody who runs it needs Go's tools.
//
// `conformance images` prints the images of its pods in a mesh, a line each: where none can be fetched, others of these
// names must be there.
package main

import (
	"fmt"
	"log"
	"os"
	"regexp"
	"slices"
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func main() {
	if slices.Equal(os.Args[1:], []string{"images"}) {
		printImages()
		return
	}
	matches := func(pattern, name string) (bool, error) { return regexp.MatchString(pattern, name) }
	testing.Main(matches, []testing.InternalTest{{Name: "Conformance", F: conformance.RunConformance}}, nil, nil)
}

func printImages() {
	manifests, err := conformance.Manifests.ReadFile("mesh/manifests.yaml")
	if err != nil {
		log.Fatal(err)
	}
	var images []string
	for _, found := range regexp.MustCompile(`(?m)^\s+image: (\S+)$`).FindAllSubmatch(manifests, -1) {
		images = append(images, string(found[1]))
	}
	slices.Sort(images)
	for _, image := range slices.Compact(images) {
		fmt.Println(image)
	}
}
