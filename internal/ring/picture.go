package ring

import (
	"math"
	"math/bits"
)

// Segments reduces the circle to a picture of n equal parts: the node that owns most of
// each. With 1,024 points for each unit of weight a part has many owners, so the
// picture shows how nodes interleave; what each owns is its Share. nil: nobody owns
// anything.
func (r *Ring) Segments(n int) []string {
	arcs := r.circle.arcs()
	if len(arcs) == 0 {
		return nil
	}
	out := make([]string, n)
	var pos uint64
	next := 0
	owned := map[string]uint64{}
	for i := range n {
		to := uint64(math.MaxUint64)
		if i+1 < n {
			to, _ = bits.Div64(uint64(i+1), 0, uint64(n)) // (i+1)/n of the circle
		}
		clear(owned)
		for pos < to {
			end, node := to, arcs[0].node // the stretch behind the last point belongs to the first
			if next < len(arcs) {
				end, node = min(to, uint64(arcs[next].end)), arcs[next].node
				if uint64(arcs[next].end) <= to {
					next++
				}
			}
			owned[node] += end - pos
			pos = end
		}
		var most uint64
		for node, part := range owned {
			if part > most || part == most && node < out[i] { // the same picture every time
				most, out[i] = part, node
			}
		}
	}
	return out
}
