// Command rpc shows clients that ask the application, through the connection
// that they have anyway: client.Request on one side, client.Webhook on the other.
//
//	go run ./examples/rpc
//
// The application is a shop: it knows prices and takes orders. The example prints
// an answer, a refusal, and what a client sees of an application that is down for
// a moment, or fails after the work is done. Then it ends.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/dialring/dialring/client"
	"github.com/dialring/dialring/examples/internal/demo"
	"github.com/dialring/dialring/wsnode"
)

// The nodes sign their webhooks with it. Yours comes from where you keep secrets.
const appSecret = "an example that anybody can read here"

func main() {
	verbose := flag.Bool("v", false, "log what the servers do")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "rpc:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, verbose bool) error {
	say := log.New(out, "", 0) // lines of client and application do not mix
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	app := &shop{say: say, prices: map[string]int{"tea": 450, "coffee": 720}, orders: map[string]int{}}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx)) // it ends after the nodes
	served := make(chan error, 1)
	go func() { served <- demo.Serve(serving, l, app.handler()) }()

	cfg := demo.Config{Node: wsnode.Config{App: "http://" + l.Addr().String() + "/dialring", AppSecret: appSecret}, Verbose: verbose}
	err = demo.Run(ctx, cfg, func(ctx context.Context, locator string) error { return shopping(ctx, say, locator, app) })
	stop()
	if err := errors.Join(err, <-served); err != nil {
		return err
	}
	say.Print("bye")
	return nil
}

// shopping is the client's side.
func shopping(ctx context.Context, say *log.Logger, locator string, app *shop) error {
	ctx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	alice, err := client.New(client.Config{Locators: []string{locator}, User: "alice",
		OnMessage: func(context.Context, client.Message) {}}) // nobody pushes here
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- alice.Run(ctx) }()

	ask := func(title string, what request) {
		say.Printf("\n%s", title)
		say.Printf("  alice asks:   %s", mustJSON(what))
		answer, err := alice.Request(ctx, what) // waits until she is connected
		var refused *client.SendError
		switch {
		case errors.As(err, &refused):
			say.Printf("  alice hears:  no (%s): %s", refused.Code, refused.Detail)
		case err != nil:
			say.Printf("  alice gives up: %v", err)
		default:
			say.Printf("  alice hears:  %s", answer)
		}
	}
	ask("An answer", request{Price: "tea"})
	ask("A refusal", request{Price: "unicorn"})
	app.failNext(2, before)
	ask("The application is down for a moment: the node asks it again, alice waits", request{Price: "coffee"})
	app.failNext(1, after)
	ask("It fails when the order is in its books: the repeat has the same id, and is one order", request{Order: "tea"})
	say.Printf("\nThe shop has %d order(s) in its books.", app.count())

	hangUp()
	return <-ended
}

// request is what clients of the shop may ask.
type request struct {
	Price string `json:"price,omitempty"`
	Order string `json:"order,omitempty"`
}

// shop is the application.
type shop struct {
	say    *log.Logger
	prices map[string]int // in cents

	mu      sync.Mutex
	orders  map[string]int // numbers, by the id of the message that ordered
	failing int            // so many times more
	when    failure
}

type failure int

const (
	before failure = iota // it is down
	after                 // the work is done, and its answer is lost
)

func (s *shop) failNext(n int, when failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing, s.when = n, when
}

// fails tells whether it fails this time.
func (s *shop) fails(when failure) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing == 0 || s.when != when {
		return false
	}
	s.failing--
	return true
}

func (s *shop) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.orders)
}

func (s *shop) handler() http.Handler {
	webhook := client.Webhook(appSecret, s.answer)
	mux := http.NewServeMux()
	mux.HandleFunc("/dialring", func(w http.ResponseWriter, r *http.Request) {
		if s.fails(before) { // what a proxy answers while the application restarts
			s.say.Print("  the shop:     503, down")
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		webhook.ServeHTTP(w, r)
	})
	return mux
}

// answer handles one message. Its sender is who the token says, not who it says
// itself.
func (s *shop) answer(_ context.Context, m client.Sent) (any, error) {
	var req request
	if err := json.Unmarshal(m.Data, &req); err != nil {
		return nil, &client.RefusedError{Detail: "this is no question for a shop"}
	}
	article := req.Price + req.Order
	cents, ok := s.prices[article]
	if !ok {
		return nil, &client.RefusedError{Detail: "we have no " + article}
	}
	if req.Order == "" {
		return map[string]any{"article": article, "cents": cents}, nil
	}
	number, again := s.order(m.ID)
	s.say.Printf("  the shop:     order %d of %s, seen before: %t", number, m.User, again)
	if s.fails(after) {
		return nil, errors.New("it fails here") // answered 500: the node tries again
	}
	return map[string]any{"order": number, "article": article, "cents": cents}, nil
}

// order returns the number of an order; a message that comes again is the same one.
func (s *shop) order(id string) (number int, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number, again = s.orders[id]; !again {
		number = len(s.orders) + 1
		s.orders[id] = number
	}
	return number, again
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain fields always have an encoding
	}
	return b
}
