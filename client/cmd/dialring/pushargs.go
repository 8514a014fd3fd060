package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"strings"

	"github.com/dialring/dialring/internal/wire"
)

// target is to whom a push goes, and what.
type target struct {
	users []string
	data  any
	doubt string
}

// target reads the arguments, as the help says.
func (a *app) target(f *pushFlags, args []string, dataGiven bool) (*target, error) {
	t := &target{}
	elsewhere := f.group != "" || f.usersFile != "" // where the users are
	switch {
	case elsewhere && dataGiven && len(args) > 0:
		return nil, usagef("with --users or --group no user is an argument (%q)", args[0])
	case elsewhere && len(args) > 1:
		return nil, usagef("with --users or --group there is at most one argument, the data; there are %d", len(args))
	case !elsewhere && len(args) == 0:
		return nil, usagef("to whom? Give a user, --users or --group")
	case !elsewhere && !dataGiven && len(args) > 2:
		return nil, usagef("%d arguments without --data: is the last one the data? Say: push %s --data …", len(args), strings.Join(args[:2], " "))
	}
	data, fromStdin := f.data, f.data == "-"
	switch {
	case dataGiven && !elsewhere:
		t.users = args
	case !dataGiven:
		rest := args
		if !elsewhere {
			t.users, rest = args[:1], args[1:]
		}
		if fromStdin = len(rest) == 0 || rest[0] == "-"; !fromStdin {
			data = rest[0]
		} else if _, tty := terminal(a.stdin); tty && len(rest) == 0 {
			return nil, usagef("what? Give the data behind the user, with --data, or on stdin")
		}
	}
	if f.usersFile == "-" && fromStdin {
		return nil, usagef("stdin is for the users: give the data as an argument")
	}
	var err error
	if f.usersFile != "" {
		if t.users, err = a.readUsers(f.usersFile); err != nil {
			return nil, err
		}
	}
	for _, u := range t.users {
		if err := wire.CheckUser(u); err != nil {
			return nil, usagef("%q: %w", u, err)
		}
	}
	b := []byte(data)
	if fromStdin {
		if b, err = a.readData(f.form.raw); err != nil {
			return nil, err
		}
	}
	t.data, t.doubt, err = f.form.payload(b)
	return t, err
}

// maxData is far more than a cluster takes.
const maxData = 64 << 20

func (a *app) readData(raw bool) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(a.stdin, maxData+1))
	switch {
	case len(b) > maxData:
		return nil, usagef("stdin has more than %d bytes", maxData)
	case err != nil:
		return nil, usagef("stdin: %w", err)
	case len(b) == 0:
		return nil, usagef("stdin is empty: give the data behind the user, with --data, or on stdin")
	}
	if !raw {
		b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	}
	return b, nil
}

func (a *app) readUsers(name string) ([]string, error) {
	in := a.stdin
	if name != "-" {
		f, err := os.Open(name) // #nosec G304 -- the caller names the file
		if err != nil {
			return nil, usagef("--users: %w", err)
		}
		defer f.Close()
		in = f
	}
	var users []string
	s := bufio.NewScanner(in)
	for s.Scan() {
		if u := strings.TrimSuffix(s.Text(), "\r"); u != "" {
			users = append(users, u)
		}
	}
	if err := s.Err(); err != nil {
		return nil, usagef("--users: %w", err)
	}
	if len(users) == 0 {
		return nil, usagef("--users: there is no user in %s", name)
	}
	return users, nil
}
