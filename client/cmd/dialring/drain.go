package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/internal/wire"
)

func (a *app) drainCommand() *cobra.Command {
	var wait, yes bool
	c := &cobra.Command{
		Use:   "drain NODE",
		Short: "Move all users off a node and end it",
		Long: `Has a node hand its users over to the others and end, as SIGTERM does there. No
client loses a message. On a terminal it shows what would move and asks first;
scripts say --yes.

With --wait it shows how many sessions are left, and ends when the node has left the
ring. As JSON: the answer of the API, and with --wait another line, with the state
"gone", then.`,
		Args: just("node", "ws-1"), ValidArgsFunction: a.nodes,
		RunE: func(c *cobra.Command, args []string) error { return a.drain(c.Context(), args[0], wait, yes) },
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait until the node is empty and has left")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

func (a *app) drain(ctx context.Context, node string, wait, yes bool) error {
	if err := wire.CheckNode(node); err != nil {
		return usagef("%q: %w", node, err)
	}
	p, err := a.pusher()
	if err != nil {
		return err
	}
	if !yes {
		if err := a.confirm(ctx, p, node); err != nil {
			return err
		}
	}
	var d drained
	if wait {
		r, err := within(ctx, a, 0, p.Ring)
		if err != nil {
			return err
		}
		d.see(r, node) // how many sessions it has, before they go
	}
	if _, err := within(ctx, a, 0, done(func(ctx context.Context) error { return p.Drain(ctx, node) })); err != nil {
		return err
	}
	if err := a.tellDrain(node, client.NodeDraining, "%s is being drained\n"); err != nil || !wait {
		return err
	}
	if err := a.awaitDrained(ctx, p, node, &d); err != nil {
		a.say("%s goes on draining; dialring ring shows it", node)
		return err
	}
	return a.tellDrain(node, "gone", "%s is empty and has left the ring\n")
}

func (a *app) tellDrain(node, state, line string) error {
	if a.asJSON() {
		return a.printJSON(struct {
			Node  string `json:"node"`
			State string `json:"state"`
		}{node, state})
	}
	return a.print(fmt.Sprintf(line, node))
}

// confirm shows what would move and asks.
func (a *app) confirm(ctx context.Context, p *client.Pusher, node string) error {
	if _, tty := terminal(a.stdin); !tty {
		return usagef("stdin is no terminal, so nobody can be asked: --yes drains %s all the same", node)
	}
	text, err := a.planned(ctx, p, client.Change{Remove: []string{node}}, false)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(a.stderr, "%sDrain %s, and end its process? [y/N] ", text, node)
	answer := make(chan string, 1)
	go func() { // a read of a terminal cannot be interrupted; the process ends
		line, _ := bufio.NewReader(a.stdin).ReadString('\n') // no answer is a no
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case <-ctx.Done():
		_, _ = fmt.Fprintln(a.stderr)
		return ctx.Err()
	case s := <-answer:
		if s == "y" || s == "yes" {
			return nil
		}
	}
	return fmt.Errorf("%s was not drained", node)
}

const (
	drainPoll = 250 * time.Millisecond
	// drainBlind is how long no locator may answer.
	drainBlind = 30 * time.Second
)

// awaitDrained shows a drain until the node is gone.
func (a *app) awaitDrained(ctx context.Context, p *client.Pusher, node string, d *drained) error {
	screen := newScreen(a.stderr)
	defer screen.clear()
	shown, answered := "", time.Now()
	for {
		r, err := bounded(ctx, a, 0, p.Ring) // without a word: it would be in the picture
		switch {
		case err == nil:
			answered = time.Now()
			if d.see(r, node) {
				return nil
			}
			if text := d.text(node); text != shown {
				shown = text
				if screen == nil {
					a.say("%s", text)
				} else if err := screen.draw(text); err != nil {
					return err
				}
			}
		case ctx.Err() != nil || time.Since(answered) > drainBlind:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(drainPoll):
		}
	}
}

// drained follows a node through what locators say of it. They may differ: one that is
// late shows an older ring, or the node still as active.
//
//	active --draining, in some ring--> leaving --not listed-------------------> gone
//	   |                                  \------listed as joining or active,--> gone: it is
//	   +---------not listed----------------->     in a newer ring              its next process
type drained struct {
	leaving  bool
	epoch    uint64 // the newest ring that it was seen leaving in
	listed   uint64 // the newest ring that it was listed with; an older one without it says nothing
	first    int    // sessions that it had
	sessions int
}

// see takes what a locator says; true: the node is gone.
func (d *drained) see(r client.Ring, node string) bool {
	for _, n := range r.Nodes {
		if n.ID != node {
			continue
		}
		if d.leaving && n.State != client.NodeDraining {
			return r.Epoch > d.epoch
		}
		d.listed = max(d.listed, r.Epoch)
		d.first, d.sessions = max(d.first, n.Sessions), n.Sessions
		if n.State == client.NodeDraining {
			d.leaving, d.epoch = true, max(d.epoch, r.Epoch)
		}
		return false
	}
	return r.Epoch >= max(d.listed, 1) // one that just started has no ring yet
}

func (d *drained) text(node string) string {
	if !d.leaving {
		return fmt.Sprintf("%s: about to leave the ring, %s", node, plural(d.sessions, "session"))
	}
	return fmt.Sprintf("%s: draining, %d of %s left", node, d.sessions, plural(d.first, "session"))
}
