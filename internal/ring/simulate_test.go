package ring

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// step is one change of the members.
type step struct {
	what          string
	before, after map[string]int
}

// outcome is what a step did.
type outcome struct {
	moved, minimum float64 // shares of all users
	ideal          float64 // what would move if shares were exactly as the weights
	peak           float64 // the largest share for its weight, over the mean
	err            string
}

// simulated makes up the steps: nodes join, leave, get heavier and lighter.
func simulated(nodes, changes int) []step {
	rnd := rand.New(rand.NewPCG(4, 2))
	weight := func() int { // most nodes are of the same kind
		if rnd.IntN(10) == 0 {
			return 2 + rnd.IntN(3)
		}
		return 1
	}
	cur := map[string]int{}
	for i := range nodes {
		cur[fmt.Sprintf("ws-%04d", i)] = weight()
	}
	pick := func() string {
		ids := slices.Sorted(maps.Keys(cur))
		return ids[rnd.IntN(len(ids))]
	}
	var out []step
	for i := range changes {
		before, s := maps.Clone(cur), step{}
		switch id := pick(); rnd.IntN(4) {
		case 0, 1:
			id = fmt.Sprintf("ws-%04d", nodes+i)
			cur[id] = weight()
			s.what = fmt.Sprintf("%s of weight %d joins", id, cur[id])
		case 2:
			s.what = fmt.Sprintf("%s of weight %d leaves", id, cur[id])
			delete(cur, id)
		default:
			w := 1 + (cur[id]+rnd.IntN(3))%4 // another one of 1 to 4
			s.what = fmt.Sprintf("%s of weight %d gets %d", id, cur[id], w)
			cur[id] = w
		}
		s.before, s.after = before, maps.Clone(cur)
		out = append(out, s)
	}
	return out
}

func total(members map[string]int) float64 {
	sum := 0
	for _, w := range members {
		sum += w
	}
	return float64(sum)
}

// unasked is a ring that no owner is asked of: what hashring builds for that
// takes a third of the time, and flows and shares do not need it.
func unasked(members map[string]int) *Ring {
	c := &circle{members: members}
	c.shares = sync.OnceValue(c.computeShares)
	r := &Ring{circle: c}
	for id, w := range members {
		r.Nodes = append(r.Nodes, Node{ID: id, Weight: w})
	}
	r.Seal()
	return r
}

// measure compares what a change moves with the least that it could: what the
// nodes that end up with more have to get.
func measure(a, b *Ring, s step) outcome {
	var o outcome
	flows := a.Flows(b)
	for _, f := range slices.SortedFunc(maps.Keys(flows), func(x, y Flow) int { return slices.Compare([]string{x.From, x.To}, []string{y.From, y.To}) }) {
		o.moved += flows[f]
	}
	wa, wb := total(s.before), total(s.after)
	sum := 0.0
	all := maps.Clone(s.before)
	maps.Copy(all, s.after)
	for id := range all {
		was, is := a.Share(id), b.Share(id)
		o.minimum += max(0, is-was)
		o.ideal += max(0, float64(s.after[id])/wb-float64(s.before[id])/wa)
		if w := s.after[id]; w > 0 {
			sum += is
			o.peak = max(o.peak, is/(float64(w)/wb))
		}
	}
	if math.Abs(sum-1) > 1e-9 {
		o.err = fmt.Sprintf("the shares add up to %v", sum)
	}
	return o
}

// A large ring through many changes: each moves exactly the share that has to
// move, and no node is ever loaded much above the mean.
func TestSimulation(t *testing.T) {
	began, nodes := time.Now(), simulatedNodes
	if os.Getenv("DIALRING_SIMULATE") != "1" {
		nodes = min(nodes, 100) // task simulate, and a step of CI of its own, take the full size
	}
	steps := simulated(nodes, simulatedChanges)
	out := make([]outcome, len(steps))
	const workers = 2 // each takes a run of steps, so that rings are built once
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			from, to := w*len(steps)/workers, (w+1)*len(steps)/workers
			cur := unasked(steps[from].before)
			for i := from; i < to; i++ {
				next := unasked(steps[i].after)
				out[i] = measure(cur, next, steps[i])
				cur = next
			}
		})
	}
	wg.Wait()
	var moved, ideal, peak, worst float64
	for i, o := range out {
		if o.err != "" {
			t.Errorf("change %d, %s: %s", i, steps[i].what, o.err)
		}
		if d := math.Abs(o.moved - o.minimum); d > 1e-9 {
			t.Errorf("change %d, %s: moved %.12f of the users, the least is %.12f", i, steps[i].what, o.moved, o.minimum)
		}
		if o.moved == 0 {
			t.Errorf("change %d, %s: nobody moved", i, steps[i].what)
		}
		moved, ideal, peak = moved+o.moved, ideal+o.ideal, max(peak, o.peak)
		worst = max(worst, o.moved/o.ideal)
	}
	// 1,024 points for each unit of weight: a share's deviation is 1/32 of it, and
	// 6 of those do not happen in some 100,000 draws.
	if peak > 1+6.0/32 {
		t.Errorf("the most loaded node had %.3f of what its weight says", peak)
	}
	t.Logf("%d nodes, %d changes, %v: largest share over mean %.3f; moved %.5f of the users in all, by the weights alone it would be %.5f (ratio %.3f, worst single one %.3f)",
		nodes, len(steps), time.Since(began).Round(time.Second), peak, moved, ideal, moved/ideal, worst)
}
