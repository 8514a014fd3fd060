package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dialring/dialring/internal/wire"
)

type loadFlags struct {
	sessions, pushers, size int
	rate, ramp              perSecond
	duration                time.Duration
	durable, ephemeral      bool
	prefix, secretFile      string
}

// perSecond is a number of things a second; the unit may be written behind it.
type perSecond int

func (p *perSecond) String() string { return strconv.Itoa(int(*p)) }
func (p *perSecond) Type() string   { return "rate" }
func (p *perSecond) Set(s string) error {
	n, err := strconv.Atoi(strings.TrimSuffix(s, "/s"))
	if err != nil || n < 0 || n > 1e6 {
		return fmt.Errorf("it is a number from 0 to 1000000, such as 500 or 500/s")
	}
	*p = perSecond(n)
	return nil
}

func (a *app) loadCommand() *cobra.Command {
	f := loadFlags{rate: 500, ramp: 500}
	c := &cobra.Command{
		Use:   "load",
		Short: "Make load: sessions, pushes to them, and what became of each",
		Long: `Opens sessions, one for each of its users (load-0, load-1, …), pushes to them at
random, and checks that each push arrives where it should, once. It is how a team
finds out what its own cluster takes: raise --rate until the latencies grow, --sessions
until the memory is full. It is an ordinary client: everything goes through the SDK,
by locate, dial, and push.

With --rate the loop is open: a push is due each 1/rate seconds, whatever became of
those before, and latency counts from when it was due, so that a cluster that stalls
shows it (no coordinated omission). At most --pushers are under way; what was due
and could not be sent before the end is told as "not sent": then the percentiles
look better than the truth, and the rate was too high for the cluster, for
--pushers, or for this machine. With --rate 0 the loop is closed: each pusher pushes
again as soon as it has its answer, and latency counts from there; it finds
the highest throughput, and says little of latency. Pushes that failed are not among
the percentiles of those accepted: they have their own (failed_latency).

Users: in development mode any; else --jwt-secret-file has the secret of
DIALRING_USER_JWT_SECRET, and each session signs its token. Locates and dials are
limited for each address (DIALRING_RATE_PER_ADDRESS, 50 a second): set --ramp to less
or raise that. Each user and session leaves up to 1,000 messages in the store; they go
with its limits. Do not run two loads with one --users-prefix at a time.

Lost: stored pushes that were accepted, or ephemeral ones that the cluster said it
had written to a session, and that had not come 10 s after the last one that did.
Ends with 1 if messages were lost, came twice or to another user, or if not all
sessions connected. Ctrl-C stops pushing, waits for what is under way, and shows the
summary; a second one ends it at once.`,
		Example: `  dialring load --sessions 1000 --rate 500 --duration 30s
  dialring load --sessions 100 --rate 0 --pushers 64 --ephemeral -o json | jq .pushes`,
		RunE: func(c *cobra.Command, _ []string) error { return a.load(c.Context(), &f) },
	}
	c.Flags().IntVar(&f.sessions, "sessions", 1000, "how many `sessions`, each of a user of its own")
	c.Flags().Var(&f.rate, "rate", "pushes a second; 0: as many as the pushers can")
	c.Flags().DurationVar(&f.duration, "duration", 30*time.Second, "how long to push, once all are connected")
	c.Flags().IntVar(&f.pushers, "pushers", 16, "how many pushes may be under way")
	c.Flags().IntVar(&f.size, "size", 128, "`bytes` of each payload")
	c.Flags().BoolVar(&f.durable, "durable", false, "stored pushes (the default)")
	c.Flags().BoolVar(&f.ephemeral, "ephemeral", false, "pushes that are not stored")
	c.Flags().StringVar(&f.prefix, "users-prefix", "load-", "what the users' ids begin with")
	c.Flags().Var(&f.ramp, "ramp", "sessions to begin a second")
	c.Flags().StringVar(&f.secretFile, "jwt-secret-file", "", "`file` with the secret (HS256) that signs the users' tokens")
	c.MarkFlagsMutuallyExclusive("durable", "ephemeral")
	return c
}

func (f *loadFlags) check() error {
	switch {
	case f.sessions < 1 || f.pushers < 1:
		return usagef("--sessions and --pushers are at least 1")
	case f.size < minPayload:
		return usagef("--size is at least %d: each payload has a number", minPayload)
	case f.ramp < 1:
		return usagef("--ramp is at least 1")
	case f.duration <= 0:
		return usagef("--duration is %s", f.duration)
	}
	if err := wire.CheckUser(f.prefix + strconv.Itoa(f.sessions)); err != nil {
		return usagef("--users-prefix: %w", err)
	}
	return nil
}

const (
	// connectPatience is how long no further session connected when it is given up.
	connectPatience = 30 * time.Second
	// arrivePatience is how long nothing came when what is missing is lost.
	arrivePatience = 10 * time.Second
	// settle is how long the end waits for what comes a second time.
	settle = 500 * time.Millisecond
	redraw = 500 * time.Millisecond
	poll   = 20 * time.Millisecond // of counters that many goroutines count up
)

// Phases of a load.
//
//	connecting --all are connected--> pushing --time is over, or Ctrl-C--> arriving --nothing
//	    |                                                 is missing, or it is lost--> leaving
//	    +--not all connect, or Ctrl-C--------------------------------------------------^
const (
	connecting = "connecting"
	pushing    = "pushing"
	arriving   = "waiting for what is under way"
	leaving    = "leaving"
)

func (a *app) load(ctx context.Context, f *loadFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	l, err := a.newLoad(f)
	if err != nil {
		return err
	}
	// A cluster that is not there, or does not know the key, says so here.
	ring, err := within(ctx, a, 0, l.pusher.Ring)
	if err != nil {
		return err
	}
	l.nodes = len(ring.Nodes)
	a.warnOfFiles(f)

	stopView := l.startView(a)
	err = l.connectAll(ctx)
	if err == nil {
		l.enter(pushing)
		l.pushAll(ctx)
		l.enter(arriving)
		l.awaitArrivals()
	}
	l.enter(leaving)
	l.leave()
	stopView()

	s := l.summary(ctx.Err() != nil)
	if a.asJSON() {
		err = errors.Join(err, a.printJSON(s))
	} else {
		err = errors.Join(err, a.print(s.text()))
	}
	if err != nil {
		return err
	}
	return s.verdict()
}

// warnOfFiles tells when the sessions will not fit under the limit of open files. The Go
// runtime has raised the soft limit to the hard one already.
func (a *app) warnOfFiles(f *loadFlags) {
	need := f.sessions + f.pushers + 64 // and locates
	// #nosec G115 -- a sum of counts
	if limit, ok := openFiles(); ok && limit < uint64(need) {
		a.say("this process may open %d files, and %d sessions need some %d: raise the hard limit (ulimit -Hn) first", limit, f.sessions, need)
	}
}
