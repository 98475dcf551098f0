// Boxinit is the /init of a box's image, and the small processes it starts from the same file.
package main

import (
	"os"

	"signet.internal/appliance/box"
)

func main() {
	os.Exit(box.Main(os.Args, os.Stdout, os.Stderr))
}
