package cluster

import (
	"fmt"
	"testing"

	"github.com/dialring/dialring/internal/ring"
)

// Only processes that ended without handing over are lost.
func TestLostNodes(t *testing.T) {
	node := func(id, boot string) ring.Node { return ring.Node{ID: id, Boot: boot} }
	was := ring.Document{Nodes: []ring.Node{node("a", "1"), node("b", "1"), node("c", "1"), node("d", "1")}, Leaving: []ring.Node{node("x", "1"), node("y", "1")}}
	is := ring.Document{Nodes: []ring.Node{node("a", "1"), node("b", "2")}, Leaving: []ring.Node{node("c", "1")}}
	for reason, want := range map[string]string{"leave": "[b d]", "crash": "[b d y]"} {
		is.Change = ring.Change{Reason: reason, Nodes: []string{"y"}}
		if got := fmt.Sprint(lostNodes(was, is)); got != want {
			t.Errorf("after a %s: %s, want %s", reason, got, want)
		}
	}
}
