package wsnode

import (
	"fmt"
	"slices"
	"testing"

	"github.com/dialring/dialring/internal/peer"
)

// However large a message is, part by part it goes to each member once, and no part is more
// than can be pushed in the time that an answer has.
func TestPushPart(t *testing.T) {
	var all []string
	for i := range 4001 {
		all = append(all, fmt.Sprintf("u%04d", i))
	}
	for _, c := range []struct{ size, limit, first, parts int }{
		{0, 5000, 2000, 3},
		{8 << 10, 2000, 2000, 3},
		{64 << 10, 2000, 256, 16},
		{64 << 10, 100, 100, 41},
		{1 << 20, 2000, 16, 251},
		{32 << 20, 2000, 1, 4001},
	} {
		push := peer.GroupPush{Limit: c.limit, Body: make([]byte, c.size)}
		var got []string
		for n := 1; ; n++ {
			members, next := pushPart(&push, all)
			if n == 1 && len(members) != c.first {
				t.Errorf("%+v: the first part has %d members", c, len(members))
			}
			got = append(got, members...)
			if push.After = next; next == "" || n > len(all) {
				if n != c.parts {
					t.Errorf("%+v: %d parts", c, n)
				}
				break
			}
		}
		if !slices.Equal(got, all) {
			t.Errorf("%+v: not each member once", c)
		}
	}
	if members, next := pushPart(&peer.GroupPush{Limit: 2000}, nil); len(members) != 0 || next != "" {
		t.Errorf("a group of nobody: %v, then %q", members, next)
	}
}
