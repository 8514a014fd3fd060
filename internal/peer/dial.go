package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"github.com/dialring/dialring/internal/certs"
)

// dial connects to the node and upgrades the connection to a link.
func (l *Link) dial(ctx context.Context) (net.Conn, *bufio.Reader, error) {
	u, err := url.Parse(l.url)
	if err != nil {
		return nil, nil, err
	}
	conn, err := Connect(ctx, u, l.TLS, l.Guard)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	br, err := l.upgrade(conn, u)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	return conn, br, nil
}

func (l *Link) upgrade(conn net.Conn, u *url.URL) (*bufio.Reader, error) {
	req, err := http.NewRequest(http.MethodGet, u.JoinPath(Path).String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", Protocol)
	req.Header.Set("Authorization", "Bearer "+l.token())
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	br, resp, err := ReadAnswer(conn, req, 16<<10)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		detail, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return nil, fmt.Errorf("the node refuses the link: %s: %s", resp.Status, detail)
	}
	return br, nil
}

// maxHead bounds the head of an answer, as net/http bounds those of requests: a node may send
// one without an end.
const maxHead = 16 << 10

// ReadAnswer reads the head of the answer to a request from a connection, of at most 16 KiB.
// What follows it is read from br, with a buffer of that size.
func ReadAnswer(conn io.Reader, req *http.Request, buffer int) (br *bufio.Reader, resp *http.Response, err error) {
	head := &io.LimitedReader{R: conn, N: maxHead}
	br = bufio.NewReaderSize(head, buffer)
	if resp, err = http.ReadResponse(br, req); err != nil {
		if head.N == 0 {
			err = fmt.Errorf("the head of the answer has more than %d bytes", maxHead)
		}
		return nil, nil, err
	}
	head.N = math.MaxInt64
	return br, resp, nil
}

// Guard is the Control of a net.Dialer: it refuses an address before anything is sent there.
type Guard = func(network, address string, c syscall.RawConn) error

// Connect connects to a peer address, http or https. With files it is called by mutual
// TLS and in no other way: who has its secrets only, and no certificate, gets no call. guard
// may be nil.
func Connect(ctx context.Context, u *url.URL, files *certs.Files, guard Guard) (net.Conn, error) {
	if err := files.Encrypted(u); err != nil {
		return nil, err
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	}
	conn, err := (&net.Dialer{Control: guard}).DialContext(ctx, "tcp", host)
	if err != nil || u.Scheme != "https" {
		return conn, err
	}
	t := tls.Client(conn, files.Client(u.Hostname()))
	if err := t.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return t, nil
}
