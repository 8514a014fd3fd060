// Command notify shows a service that tells users how their orders are doing, and
// knows what became of each message.
//
//	go run ./examples/notify
//
// Alice and bob are connected; carol's phone is off until all orders are placed, and
// she misses nothing. The service names each message with an idempotency key, so that
// it may repeat it. In the end there is a table of receipts. It ends by itself, or
// on Ctrl-C.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/examples/internal/demo"
)

func main() {
	orders := flag.Int("orders", 6, "how many orders there are")
	pause := flag.Duration("pause", 500*time.Millisecond, "longest time until an order gets on")
	verbose := flag.Bool("v", false, "log what the servers do")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *orders, *pause, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "notify:", err)
		os.Exit(1)
	}
}

// order is what the messages say.
type order struct {
	Number  int    `json:"order"`
	User    string `json:"-"`
	Article string `json:"article"`
	State   string `json:"state"`
}

// key names a message: the service would make the same one after a crash.
func (o order) key() string { return fmt.Sprintf("order-%d-%s", o.Number, o.State) }

func run(ctx context.Context, out io.Writer, orders int, pause time.Duration, verbose bool) error {
	say := log.New(out, "", 0) // lines of all do not mix
	s := &service{say: say, pause: pause}
	err := demo.Run(ctx, demo.Config{Verbose: verbose}, func(ctx context.Context, locator string) error {
		return s.run(ctx, locator, orders)
	})
	s.table(out)
	if err != nil && ctx.Err() == nil { // else it was told to end
		return err
	}
	say.Print("bye")
	return nil
}

// service pushes, and keeps the receipts.
type service struct {
	say   *log.Logger
	pause time.Duration
	push  *client.Pusher

	mu       sync.Mutex
	receipts []receipt
}

type receipt struct {
	order
	client.Receipt
	waited bool // for an acknowledgement
}

func (s *service) run(ctx context.Context, locator string, n int) error {
	var err error
	if s.push, err = client.NewPusher(client.PusherConfig{Locators: []string{locator}, APIKey: demo.APIKey}); err != nil {
		return err
	}
	users, articles := []string{"alice", "bob", "carol"}, []string{"tea", "coffee", "cake"}
	orders := make([]order, n)
	for i := range orders {
		orders[i] = order{Number: 1001 + i, User: users[i%len(users)], Article: articles[rand.IntN(len(articles))]} // #nosec G404 -- made up orders
	}

	g, ctx := errgroup.WithContext(ctx)
	phones, off := context.WithCancel(ctx)
	g.Go(func() error {
		defer off()
		s.on(phones, g, locator, "alice")
		s.on(phones, g, locator, "bob")
		if err := s.placed(ctx, orders); err != nil {
			return err
		}
		s.say.Print("carol turns her phone on")
		s.on(phones, g, locator, "carol")
		var each errgroup.Group
		for _, o := range orders {
			each.Go(func() error { return s.deliver(ctx, o) })
		}
		if err := each.Wait(); err != nil || len(orders) == 0 {
			return err
		}
		s.say.Print("the service comes back from a crash and repeats what it said last")
		o := orders[0]
		o.State = "delivered"
		return s.tell(ctx, o)
	})
	return g.Wait()
}

// on turns a user's phone on: it prints what it gets, until ctx ends. It returns when
// the phone is connected.
func (s *service) on(ctx context.Context, g *errgroup.Group, locator, user string) {
	connected := make(chan struct{})
	once := sync.OnceFunc(func() { close(connected) })
	g.Go(func() error {
		phone, err := client.New(client.Config{Locators: []string{locator}, User: user, Device: "phone",
			Since: "0", // everything that is kept, also from before it was on for the first time
			OnMessage: func(_ context.Context, m client.Message) {
				var o order
				if err := m.Unmarshal(&o); err != nil {
					s.say.Printf("%s's phone cannot read %s", user, m.Data)
					return
				}
				s.say.Printf("%s's phone: order %d (%s) is %s", user, o.Number, o.Article, o.State)
			},
			OnEvent: func(e client.Event) {
				if e.State == client.Connected {
					once()
				}
			}})
		if err != nil {
			return err
		}
		return phone.Run(ctx)
	})
	select {
	case <-connected:
	case <-ctx.Done():
	}
}

// placed confirms orders, over one stream: many messages, whose results come as they
// are stored.
func (s *service) placed(ctx context.Context, orders []order) error {
	stream, err := s.push.Stream(ctx)
	if err != nil {
		return err
	}
	placed, byKey := slices.Clone(orders), map[string]order{}
	for i := range placed {
		placed[i].State = "placed"
		byKey[placed[i].key()] = placed[i]
	}
	var g errgroup.Group
	g.Go(func() error {
		defer stream.Close()
		for _, o := range placed {
			if err := stream.Push(client.Item{User: o.User, Data: o, Key: o.key()}); err != nil {
				return err
			}
		}
		return nil
	})
	var failed error
	for r := range stream.Results() {
		if r.Err != nil {
			failed = cmp.Or(failed, r.Err)
			continue
		}
		s.keep(receipt{order: byKey[r.Key], Receipt: r.Receipt})
	}
	return cmp.Or(failed, stream.Err(), g.Wait())
}

// deliver gets an order on its way, and waits until its user has each message.
func (s *service) deliver(ctx context.Context, o order) error {
	for _, o.State = range []string{"packed", "sent", "delivered"} {
		if s.pause > 0 {
			select {
			case <-time.After(rand.N(s.pause)): // #nosec G404 -- made up orders
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := s.tell(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) tell(ctx context.Context, o order) error {
	r, err := s.push.Push(ctx, o.User, o, client.IdempotencyKey(o.key()), client.WaitAck(10*time.Second))
	if err != nil {
		return fmt.Errorf("order %d is %s: %w", o.Number, o.State, err)
	}
	s.keep(receipt{o, r, true})
	return nil
}

func (s *service) keep(r receipt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.receipts = append(s.receipts, r)
}

// table prints what became of each message.
func (s *service) table(out io.Writer) {
	slices.SortStableFunc(s.receipts, func(a, b receipt) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Seq, b.Seq))
	})
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nORDER\tSTATE\tUSER\tNODE\tSEQ\tSTORED\tDELIVERED\tACKED\t")
	for _, r := range s.receipts {
		acked, note := "-", "" // nobody waited for that
		if r.waited {
			acked = fmt.Sprint(r.Acked)
		}
		if r.Duplicate {
			note = "a repeat: nothing was sent"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%d\t%t\t%d\t%s\t%s\n", r.Number, r.State, r.User, r.Node, r.Seq, r.Stored, r.Delivered, acked, note)
	}
	_ = t.Flush()
	fmt.Fprintln(out)
}
