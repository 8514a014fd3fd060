package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

// watchEvery is how often the ring is asked for: nodes tell their sessions each second.
const watchEvery = time.Second

func (a *app) ringCommand() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:   "ring",
		Short: "Show the nodes, and handoffs that are under way",
		Long: `Shows the nodes of the ring as a locator sees them: the state (joining, active,
suspect, draining), the exact share of all users, sessions, weight, how long ago the
last heartbeat came; and the handoffs after changes that are not finished, with the
sessions that still have to move.

With --watch it is shown again each second, until Ctrl-C.`,
		RunE: func(c *cobra.Command, _ []string) error { return a.ring(c.Context(), watch) },
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "again each second, until Ctrl-C")
	return c
}

func (a *app) ring(ctx context.Context, watch bool) error {
	p, err := a.pusher()
	if err != nil {
		return err
	}
	r, err := within(ctx, a, 0, p.Ring)
	if err != nil {
		return err
	}
	if !watch {
		return a.showRing(r, nil)
	}
	screen := newScreen(a.stdout)
	for {
		switch {
		case err == nil:
			if err := a.showRing(r, screen); err != nil {
				return err
			}
		case ctx.Err() == nil: // it may come back
			a.say("%s", a.explain(err, codeOf(ctx, err)))
			if screen != nil {
				screen.drawn = 0 // what was said stays
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
		r, err = bounded(ctx, a, 0, p.Ring) // without a word: it would be in the picture
	}
}

// showRing prints the ring, or draws it on a screen.
func (a *app) showRing(r client.Ring, s *screen) error {
	switch {
	case a.asJSON():
		return a.printJSON(ringJSON(r))
	case s != nil:
		return s.draw(ringText(r, a.colours()))
	}
	return a.print(ringText(r, a.colours()))
}

func ringJSON(r client.Ring) wire.RingResponse {
	out := wire.RingResponse{Cluster: r.Cluster, Epoch: r.Epoch, Hash: r.Hash, Nodes: []wire.RingNode{}, Handoffs: []wire.RingHandoff{}}
	for _, n := range r.Nodes {
		out.Nodes = append(out.Nodes, wire.RingNode{ID: n.ID, URL: n.URL, Weight: n.Weight, State: n.State, Sessions: n.Sessions, Share: n.Share, LastSeenMS: n.LastSeen.Milliseconds()})
	}
	for _, h := range r.Handoffs {
		x := wire.RingHandoff{FromEpoch: h.FromEpoch, Reason: h.Reason, Nodes: h.Nodes, Pending: []wire.HandoffNode{}}
		for _, n := range h.Pending {
			x.Pending = append(x.Pending, wire.HandoffNode(n))
		}
		out.Handoffs = append(out.Handoffs, x)
	}
	return out
}

var stateColours = map[string]string{client.NodeJoining: cyan, client.NodeActive: green, client.NodeSuspect: red, client.NodeDraining: yellow}

func ringText(r client.Ring, colours bool) string {
	sessions := 0
	rows := [][]cell{plain("NODE", "STATE", "SHARE", "SESSIONS", "WEIGHT", "LAST SEEN", "URL")}
	for _, n := range r.Nodes {
		sessions += n.Sessions
		seen := "never"
		if n.LastSeen >= 0 {
			seen = fmt.Sprintf("%.1fs ago", n.LastSeen.Seconds())
		}
		row := plain(n.ID, n.State, percent(n.Share), strconv.Itoa(n.Sessions), strconv.Itoa(n.Weight), seen, n.URL)
		row[1].colour = stateColours[n.State]
		rows = append(rows, row)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %s, ring %d (%s): %s, %s\n", clean(r.Cluster), r.Epoch, r.Hash, plural(len(r.Nodes), "node"), plural(sessions, "session"))
	if len(r.Nodes) > 0 {
		b.WriteString(table(rows, colours))
	}
	for _, h := range r.Handoffs {
		fmt.Fprintf(&b, "handoff after ring %d, %s of %s: %s\n", h.FromEpoch, clean(h.Reason), clean(strings.Join(h.Nodes, ", ")), clean(pendingText(h.Pending)))
	}
	return b.String()
}

func pendingText(pending []client.HandoffNode) string {
	if len(pending) == 0 {
		return "about to finish"
	}
	out := make([]string, len(pending))
	for i, n := range pending {
		out[i] = fmt.Sprintf("%s has %s to move", n.Node, plural(n.Sessions, "session"))
	}
	return strings.Join(out, ", ")
}

func (a *app) planCommand() *cobra.Command {
	var add, remove []string
	c := &cobra.Command{
		Use:   "plan [--add NODE[:WEIGHT]] [--remove NODE]",
		Short: "Show what a change of the ring would move, without doing it",
		Long: `Shows which part of all users, and how many of the sessions that are open now, would
move from where to where if nodes were added or removed. Nothing is changed. To add
a node that is there changes its weight.`,
		Example: `  dialring plan --add ws-4:2 --remove ws-1`,
		RunE: func(c *cobra.Command, _ []string) error {
			change, err := changeOf(add, remove)
			if err != nil {
				return err
			}
			return a.plan(c.Context(), change)
		},
	}
	c.Flags().StringSliceVar(&add, "add", nil, "`node` to add, with :weight behind it if that is not 1")
	c.Flags().StringSliceVar(&remove, "remove", nil, "`node` to remove")
	return c
}

func changeOf(add, remove []string) (client.Change, error) {
	change := client.Change{Remove: remove}
	if len(add)+len(remove) == 0 {
		return change, usagef("give --add, --remove or both")
	}
	for _, s := range add {
		id, weight, weighted := strings.Cut(s, ":")
		n := client.NodeWeight{ID: id, Weight: 1}
		if weighted {
			var err error
			if n.Weight, err = strconv.Atoi(weight); err != nil || n.Weight < 1 {
				return change, usagef("--add %s: the weight %q is no number from 1", s, weight)
			}
		}
		change.Add = append(change.Add, n)
	}
	ids := remove
	for _, n := range change.Add {
		ids = append(ids[:len(ids):len(ids)], n.ID)
	}
	for _, id := range ids {
		if err := wire.CheckNode(id); err != nil {
			return change, usagef("%q: %w", id, err)
		}
	}
	return change, nil
}

func (a *app) plan(ctx context.Context, change client.Change) error {
	p, err := a.pusher()
	if err != nil {
		return err
	}
	plan, err := within(ctx, a, 0, func(ctx context.Context) (client.Plan, error) { return p.Plan(ctx, change) })
	if err != nil {
		return err
	}
	if a.asJSON() {
		out := wire.PlanResponse{Epoch: plan.Epoch, Share: plan.Share, Sessions: plan.Sessions, Moves: []wire.PlanMove{}}
		for _, m := range plan.Moves {
			out.Moves = append(out.Moves, wire.PlanMove(m))
		}
		return a.printJSON(out)
	}
	return a.print(planText(plan, a.colours()))
}

func planText(p client.Plan, colours bool) string {
	text := fmt.Sprintf("%s of all users and %s would move (ring %d)\n", percent(p.Share), plural(p.Sessions, "session"), p.Epoch)
	if len(p.Moves) == 0 {
		return text
	}
	rows := [][]cell{plain("FROM", "TO", "SHARE", "SESSIONS")}
	for _, m := range p.Moves {
		rows = append(rows, plain(m.From, m.To, percent(m.Share), strconv.Itoa(m.Sessions)))
	}
	return text + table(rows, colours)
}

// planned tells, for a question, what a change would move.
func (a *app) planned(ctx context.Context, p *client.Pusher, change client.Change, colours bool) (string, error) {
	plan, err := within(ctx, a, 0, func(ctx context.Context) (client.Plan, error) { return p.Plan(ctx, change) })
	var api *client.APIError
	switch {
	case errors.As(err, &api) && !again(api) && api.Status != 401:
		return "What would move is not known: " + api.Detail + "\n", nil
	case err != nil:
		return "", err
	}
	return planText(plan, colours), nil
}
