//go:build race

package ring

import "flag"

// With the race detector these tests, which compute in one goroutine, take five times as
// long and find no more: they have smaller samples. CI runs them without it, too.
const smaller = 5

func init() {
	if err := flag.Set("rapid.checks", "20"); err != nil { // of 100
		panic(err)
	}
}
