package main

import (
	"bytes"
	"context"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const patience = time.Minute // a bound on hangs

// Everything that the example shows, in this order, and nothing else.
const want = `
An answer
  alice asks:   {"price":"tea"}
  alice hears:  {"article":"tea","cents":450}

A refusal
  alice asks:   {"price":"unicorn"}
  alice hears:  no (invalid_request): we have no unicorn

The application is down for a moment: the node asks it again, alice waits
  alice asks:   {"price":"coffee"}
  the shop:     503, down
  the shop:     503, down
  alice hears:  {"article":"coffee","cents":720}

It fails when the order is in its books: the repeat has the same id, and is one order
  alice asks:   {"order":"tea"}
  the shop:     order 1 of alice, seen before: false
  the shop:     order 1 of alice, seen before: true
  alice hears:  {"article":"tea","cents":450,"order":1}

The shop has 1 order(s) in its books.
bye
`

func TestRPC(t *testing.T) {
	defer goleak.VerifyNone(t)
	defer http.DefaultClient.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out bytes.Buffer // the log writes a line at a time, and has ended when run returns
	if err := run(ctx, &out, false); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if out.String() != want {
		t.Errorf("it prints\n%s\nwant\n%s", out.String(), want)
	}
}
