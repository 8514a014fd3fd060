package locator

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/labstack/echo/v4"

	"github.com/dialring/dialring/internal/httpd"
	"github.com/dialring/dialring/internal/peer"
	"github.com/dialring/dialring/internal/ring"
	"github.com/dialring/dialring/internal/wire"
)

const maxPlanBody = 1 << 20

// getRing: GET /v1/ring, the ring as this locator sees it.
func (l *Locator) getRing(c echo.Context) error {
	cur := l.rings.Current()
	nodes, handoffs := l.keeper.View(cur)
	return writeJSON(c, http.StatusOK, wire.RingResponse{Cluster: l.cfg.Cluster, Epoch: cur.Epoch, Hash: cur.Hash, Nodes: nodes, Handoffs: handoffs})
}

// writeJSON writes v as JSON that nobody may keep.
func writeJSON(c echo.Context, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	if status != http.StatusOK {
		return c.JSONBlob(status, b)
	}
	return httpd.JSON(c.Response(), b)
}

// drain: POST /v1/nodes/{node}/drain does what SIGTERM does there.
func (l *Locator) drain(c echo.Context) error {
	id := c.Param("node")
	cur := l.rings.Current()
	n, ok := cur.Process(id)
	if !ok {
		return wire.NewProblem(http.StatusNotFound, wire.CodeNotFound, "no node %q is in the ring; GET /v1/ring lists them", id)
	}
	if _, err := l.router.call(c.Request().Context(), &n, &peer.Call{Op: peer.OpDrain, Ring: cur.Ref()}); err != nil {
		return unreachable(n.ID)
	}
	return writeJSON(c, http.StatusAccepted, map[string]any{"node": n.ID, "state": wire.StateDraining})
}

func unreachable(node string) *wire.Problem {
	return wire.NewProblem(http.StatusServiceUnavailable, wire.CodeOwnerUnreachable, "node %s does not answer; try again", node)
}

// plan: POST /v1/ring/plan says what a change of the ring would move, without
// doing it: of the ring exactly, and of the sessions by asking the nodes.
func (l *Locator) plan(c echo.Context) error {
	body, p := l.readJSON(c.Request(), maxPlanBody)
	if p != nil {
		return p
	}
	var req wire.PlanRequest
	if err := wire.DecodeJSON(body, &req); err != nil {
		return badRequest("the body: %v", err)
	}
	cur := l.rings.Current()
	members, p := planned(cur, &req)
	if p != nil {
		return p
	}
	out := wire.PlanResponse{Epoch: cur.Epoch, Moves: []wire.PlanMove{}}
	if maps.Equal(members, cur.Members()) {
		return writeJSON(c, http.StatusOK, out)
	}
	sessions, p := l.planSessions(c.Request().Context(), cur, members)
	if p != nil {
		return p
	}
	flows := cur.Flows(ring.Of(members))
	for f := range sessions {
		if _, ok := flows[f]; !ok {
			flows[f] = 0 // sessions that are on their way already
		}
	}
	for f, share := range flows {
		out.Moves = append(out.Moves, wire.PlanMove{From: f.From, To: f.To, Share: share, Sessions: sessions[f]})
		out.Share += share
		out.Sessions += sessions[f]
	}
	slices.SortFunc(out.Moves, func(a, b wire.PlanMove) int {
		if a.From != b.From {
			return strings.Compare(a.From, b.From)
		}
		return strings.Compare(a.To, b.To)
	})
	return writeJSON(c, http.StatusOK, out)
}

// planned returns the members that the ring would have.
func planned(cur *ring.Ring, req *wire.PlanRequest) (map[string]int, *wire.Problem) {
	if len(req.Add) == 0 && len(req.Remove) == 0 {
		return nil, badRequest(`the plan is empty: {"add":[{"id":"ws-4","weight":1}],"remove":["ws-2"]}`)
	}
	members := cur.Members()
	for _, id := range req.Remove {
		if _, in := members[id]; !in {
			return nil, badRequest("remove: no node %q is in the ring", id)
		}
		delete(members, id)
	}
	for _, n := range req.Add {
		if err := wire.CheckNode(n.ID); err != nil {
			return nil, badRequest("add: %v", err)
		}
		if n.Weight == 0 { // it is not given
			n.Weight = 1
		}
		if n.Weight < 1 || n.Weight > ring.MaxWeight {
			return nil, badRequest("add: weight %d of node %s is not within 1 to %d", n.Weight, n.ID, ring.MaxWeight)
		}
		members[n.ID] = int(n.Weight)
	}
	if len(members) == 0 {
		return nil, badRequest("no node would be left")
	}
	sum := 0
	for _, w := range members {
		sum += w
	}
	if len(members) > ring.MaxNodes || sum > ring.MaxTotalWeight {
		return nil, badRequest("that ring would have %d nodes and a weight of %d; at most %d and %d are possible", len(members), sum, ring.MaxNodes, ring.MaxTotalWeight)
	}
	return members, nil
}

// planSessions asks each node how many of its sessions another ring would give
// to whom.
func (l *Locator) planSessions(ctx context.Context, cur *ring.Ring, members map[string]int) (map[ring.Flow]int, *wire.Problem) {
	body, err := json.Marshal(members)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	var mu sync.Mutex
	var failed *wire.Problem
	out := map[ring.Flow]int{}
	var wg sync.WaitGroup
	for _, n := range slices.Concat(cur.Nodes, cur.Leaving) {
		wg.Go(func() {
			r, err := l.router.call(ctx, &n, &peer.Call{Op: peer.OpPlan, Ring: cur.Ref(), JSON: true, Body: body})
			var to map[string]int
			if err == nil {
				err = json.Unmarshal(r.Body, &to)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = unreachable(n.ID)
			}
			for id, k := range to {
				out[ring.Flow{From: n.ID, To: id}] = k
			}
		})
	}
	wg.Wait()
	return out, failed
}
