package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const patience = time.Minute // a bound on hangs

// Every phone gets every message of its user once, in order; the receipts say so.
func TestNotify(t *testing.T) {
	defer goleak.VerifyNone(t)
	defer http.DefaultClient.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, &out, 4, 0, false); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	lines := strings.Split(out.String(), "\n")
	if lines[len(lines)-2] != "bye" {
		t.Errorf("it does not end with bye")
	}
	states := []string{"placed", "packed", "sent", "delivered"}
	rows := map[string][][]string{} // of the table, by order
	for _, l := range lines {
		if f := strings.Fields(l); len(f) >= 8 && f[0] >= "1001" && f[0] <= "1004" {
			rows[f[0]] = append(rows[f[0]], f)
		}
	}
	for i, user := range []string{"alice", "bob", "carol", "alice"} {
		number := fmt.Sprint(1001 + i)
		var got []string // what the phone printed of this order
		for _, l := range lines {
			if strings.HasPrefix(l, user+"'s phone: order "+number+" ") {
				got = append(got, l[strings.LastIndex(l, " ")+1:])
			}
		}
		if !slices.Equal(got, states) {
			t.Errorf("%s's phone was told of order %s: %q", user, number, got)
		}
		want := states
		if i == 0 {
			want = append(slices.Clone(states), "delivered") // repeated
		}
		if len(rows[number]) != len(want) {
			t.Errorf("order %s has the receipts %q", number, rows[number])
			continue
		}
		for k, f := range rows[number] {
			state, stored, delivered, acked, repeat := f[1], f[5], f[6], f[7], len(f) > 8
			if state != want[k] || f[2] != user || stored != "true" || repeat != (k == len(states)) {
				t.Errorf("the receipt is %q, want one of %s, stored", f, want[k])
			}
			if state == "placed" {
				if off := user == "carol"; acked != "-" || off != (delivered == "0") {
					t.Errorf("the receipt is %q", f)
				}
			} else if acked != "1" {
				t.Errorf("the receipt is %q, want it acknowledged", f)
			}
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
}

// watched calls seen when a line with want is printed.
type watched struct {
	mu   sync.Mutex
	b    bytes.Buffer
	want string
	seen func()
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.Contains(string(p), w.want) {
		w.seen()
	}
	return w.b.Write(p)
}

// Ctrl-C in the middle ends it with the receipts up to there.
func TestInterrupted(t *testing.T) {
	defer goleak.VerifyNone(t)
	defer http.DefaultClient.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out := &watched{want: "carol turns her phone on", seen: cancel}
	if err := run(ctx, out, 3, 24*time.Hour, false); err != nil {
		t.Fatalf("%v\n%s", err, out.b.String())
	}
	s := out.b.String()
	if strings.Count(s, "placed  ") != 3 || strings.Contains(s, "packed") || !strings.HasSuffix(s, "\nbye\n") {
		t.Errorf("it prints\n%s", s)
	}
}
