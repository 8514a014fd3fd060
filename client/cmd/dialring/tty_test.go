//go:build unix

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/dialring/dialring/internal/machine"
	"github.com/dialring/dialring/internal/wire"
	"github.com/dialring/dialring/locator"
)

// session of a person: the built command, on a terminal.
type person struct {
	t    *testing.T
	cmd  *exec.Cmd
	tty  *os.File
	done chan struct{}

	mu  sync.Mutex
	saw strings.Builder
}

// sit runs the built command on a terminal of 30 lines.
func sit(t *testing.T, c *cluster, env []string, args ...string) *person {
	t.Helper()
	p := &person{t: t, cmd: exec.Command(binary, args...), done: make(chan struct{})}
	p.cmd.Env = append(append([]string{"TERM=xterm"}, c.env...), env...)
	tty, err := pty.StartWithSize(p.cmd, &pty.Winsize{Rows: 30, Cols: 200})
	if err != nil {
		machine.Lacks(t, "no terminal: %v", err)
	}
	p.tty = tty
	go func() {
		defer close(p.done)
		b := make([]byte, 4096)
		for {
			n, err := tty.Read(b)
			p.mu.Lock()
			p.saw.Write(b[:n])
			p.mu.Unlock()
			if err != nil { // the command has ended
				_ = p.cmd.Wait()
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		_ = tty.Close()
	})
	return p
}

func (p *person) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.ReplaceAll(p.saw.String(), "\r\n", "\n")
}

func (p *person) sees(text string) {
	p.t.Helper()
	end := time.Now().Add(patience)
	for !strings.Contains(p.text(), text) {
		if time.Now().After(end) {
			p.t.Fatalf("%q was never shown:\n%s", text, p.text())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (p *person) types(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.tty, text); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) ends(code int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("it did not end:\n%s", p.text())
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("ended with %d, want %d:\n%s", got, code, p.text())
	}
}

const ctrlC = "\x03"

func TestTerminal(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, locator.Config{})
	for name, test := range map[string]func(*testing.T, *cluster){
		"a table, with colours": func(t *testing.T, c *cluster) {
			p := sit(t, c, nil, "ring")
			p.ends(exitDone)
			if s := p.text(); !strings.Contains(s, "NODE  STATE ") || !strings.Contains(s, "\x1b[32mactive\x1b[0m") {
				t.Errorf("%q", s)
			}
		},
		"NO_COLOR": func(t *testing.T, c *cluster) {
			for _, env := range []string{"NO_COLOR=1", "TERM=dumb"} {
				p := sit(t, c, []string{env}, "ring")
				p.ends(exitDone)
				if s := p.text(); !strings.Contains(s, "active") || strings.Contains(s, "\x1b") {
					t.Errorf("%s: %q", env, s)
				}
			}
		},
		"JSON all the same": func(t *testing.T, c *cluster) {
			p := sit(t, c, nil, "ring", "-o", "json")
			p.ends(exitDone)
			var r wire.RingResponse
			decode(t, p.text(), &r)
		},
		"watch": func(t *testing.T, c *cluster) {
			p := sit(t, c, nil, "ring", "--watch")
			p.sees("\x1b[4A\r\x1b[J") // drawn over the four lines before
			p.types(ctrlC)
			p.ends(exitDone)
		},
		"listen": func(t *testing.T, c *cluster) {
			p := sit(t, c, nil, "listen", "--user", "tess", "--device", "d")
			p.sees("connected to ws-")
			c.ok(t, "push", "tess", "hi")
			p.sees(`  -  #1  "hi"`)
			p.types(ctrlC)
			p.ends(exitDone)
		},
		"push of nothing": func(t *testing.T, c *cluster) {
			p := sit(t, c, nil, "push", "tom")
			p.ends(exitUsage)
			p.sees("what? Give the data behind the user")
		},
		"push of what is typed": func(t *testing.T, c *cluster) {
			p := sit(t, c, nil, "push", "tom", "-")
			p.types("hello\n\x04")
			p.ends(exitDone)
			p.sees("stored as #1, written to 0 sessions of tom at ws-")
		},
		"load": func(t *testing.T, c *cluster) {
			p := sit(t, c, nil, "load", "--sessions", "5", "--rate", "50", "--duration", "1h")
			p.sees(": pushing, 1s (open loop, 50/s: latency counts from when a push was due)")
			p.sees("  sessions  5 of 5 up, ")
			p.types(ctrlC)
			p.ends(exitInterrupted)
			p.sees(": 0 lost, 0 twice, 0 to another user\n")
		},
		"load while it connects": func(t *testing.T, c *cluster) {
			p := sit(t, c, nil, "load", "--sessions", "100", "--ramp", "1", "--users-prefix", "ramp-")
			p.sees("  sessions  1 of 100 up, ")
			p.types(ctrlC)
			p.ends(exitInterrupted)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, c)
		})
	}
}

func TestDrainAsks(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2, locator.Config{})
	connect(t, c, 20)
	for _, answer := range []string{"n\n", "\n", "yess\n", "\x04"} {
		p := sit(t, c, nil, "drain", "ws-2")
		p.sees("ws-2  ws-1  ")
		p.sees("Drain ws-2, and end its process? [y/N] ")
		p.types(answer)
		p.ends(exitFailed)
		p.sees("ws-2 was not drained")
	}
	p := sit(t, c, nil, "drain", "ws-2")
	p.sees("[y/N] ")
	p.types(ctrlC)
	p.ends(exitInterrupted)
	if r, err := c.pusher.Ring(t.Context()); err != nil || len(r.Nodes) != 2 || r.Nodes[1].Share == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	p = sit(t, c, nil, "drain", "ws-2", "--wait")
	p.sees("[y/N] ")
	p.types("y\n")
	p.ends(exitDone)
	p.sees("ws-2 is empty and has left the ring\n")
	p = sit(t, c, nil, "drain", "ws-1") // the last one
	p.sees("What would move is not known: no node would be left\n")
	p.types("n\n")
	p.ends(exitFailed)
}

// built runs the built command, with its streams no terminals.
func built(t *testing.T, c *cluster, shell string) outcome {
	t.Helper()
	cmd := exec.Command("sh", "-c", shell)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH") + ":" + filepath.Dir(binary)}, c.env...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the code says it
	return outcome{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

func TestBuilt(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, locator.Config{})
	t.Run("codes", func(t *testing.T) {
		t.Parallel()
		built(t, c, "dialring ring").want(t, exitDone, "")
		built(t, c, "DIALRING_CLI_API_KEY=wrong dialring ring").want(t, exitFailed, "set DIALRING_CLI_API_KEY or --api-key-file")
		built(t, c, "dialring rong").want(t, exitUsage, "there is no command")
		built(t, c, "dialring ring --locator "+nobody(t)).want(t, exitUnreachable, "is one running?")
		for range 5 { // the greeting of NATS may come before or behind what is asked
			o := built(t, c, "dialring ring --locator http://"+c.nats)
			o.want(t, exitUnreachable, "but something else does: --locator is")
			if strings.Contains(o.errors, "INFO") || strings.Count(o.errors, "\n") != 1 {
				t.Errorf("%q", o.errors)
			}
		}
		if o := built(t, c, "echo '{\"a\":1}' | dialring push pia"); !strings.Contains(o.out, `"seq":1,"stored":true`) {
			t.Errorf("%+v", o)
		}
		// Terminal sequences never leave for a pipe.
		if o := built(t, c, "dialring ring -o table"); strings.Contains(o.out, "\x1b") {
			t.Errorf("%q", o.out)
		}
	})
	t.Run("signals", func(t *testing.T) {
		t.Parallel()
		for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
			cmd := exec.Command(binary, "listen", "--user", fmt.Sprint("sig-", int(s)))
			cmd.Env = c.env
			errs, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 200)
			n, err := errs.Read(b) // it says that it is connected
			if err != nil || !strings.Contains(string(b[:n]), "connected to ws-1") {
				t.Errorf("%q, %v", b[:n], err)
			}
			_ = cmd.Process.Signal(s)
			if err := cmd.Wait(); err != nil {
				t.Errorf("after %v: %v", s, err)
			}
		}
	})
	// A message that could not be printed is not acknowledged.
	t.Run("a full disk", func(t *testing.T) {
		t.Parallel()
		if _, err := os.Stat("/dev/full"); err != nil {
			machine.Lacks(t, "no full disk: %v", err)
		}
		ended := make(chan outcome, 1)
		go func() { ended <- built(t, c, "dialring listen --user dora > /dev/full") }()
		eventually(t, "it is connected", func() bool {
			var u wire.UserResponse
			decode(t, c.ok(t, "where", "dora"), &u)
			return u.Online
		})
		var r wire.PushResult
		o := c.do(t, "push", "dora", "hi", "--wait-ack", "2s")
		o.want(t, exitFailed, "no session acknowledged the message")
		if decode(t, o.out, &r); r.Delivered != 1 {
			t.Errorf("it was not written: %+v", r)
		}
		o = <-ended
		o.want(t, exitFailed, "a message could not be printed, and was not acknowledged")
	})
	t.Run("a low limit of files", func(t *testing.T) {
		t.Parallel()
		load := "dialring load --sessions 10 --rate 20 --duration 100ms --users-prefix files-"
		built(t, c, "ulimit -n 70 && "+load).want(t, exitDone, "this process may open 70 files, and 10 sessions need some 90: raise the hard limit")
		if o := built(t, c, "ulimit -Sn 70 && "+load); o.code != exitDone || strings.Contains(o.errors, "raise the hard limit") {
			t.Errorf("the soft limit is raised: %+v", o)
		}
	})
}
