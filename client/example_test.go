package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"time"

	"github.com/dialring/dialring/client"
)

// An app receives until it is interrupted.
func ExampleClient() {
	c, err := client.New(client.Config{
		Locators: []string{"https://push.example.com"},
		Token:    client.StaticToken(os.Getenv("TOKEN")),
		OnMessage: func(_ context.Context, m client.Message) {
			fmt.Printf("%s\n", m.Data)
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := c.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// A server that ends a session for good says why.
func ExampleClient_Run() {
	var c *client.Client // made with client.New

	var stopped *client.StoppedError
	switch err := c.Run(context.Background()); {
	case errors.As(err, &stopped) && stopped.Code == 4003:
		log.Print("signed in elsewhere with this device")
	case err != nil:
		log.Print("sign in again: ", err)
	}
}

func ExampleConfig_token() {
	_ = client.Config{
		Locators: []string{"https://eu.push.example.com", "https://us.push.example.com"},
		Token: func(ctx context.Context) (string, error) {
			return signIn(ctx) // called before each connection
		},
		Device:    "laptop-7",
		OnMessage: func(context.Context, client.Message) {},
		OnEvent:   func(e client.Event) { log.Print(e.State, e.Err) },
	}
}

func signIn(context.Context) (string, error) { return "a JWT", nil }

func ExampleMessage_Unmarshal() {
	m := client.Message{ID: "m1", Data: []byte(`{"text":"hello"}`), JSON: true}

	var note struct{ Text string }
	if err := m.Unmarshal(&note); err != nil {
		log.Fatal(err)
	}
	fmt.Println(note.Text)
	// Output: hello
}

func ExampleNewPusher() {
	p, err := client.NewPusher(client.PusherConfig{
		Locators: []string{"http://locator-1.internal:8080", "http://locator-2.internal:8080"},
		APIKey:   os.Getenv("PUSH_API_KEY"),
	})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := p.Push(context.Background(), "alice", "hello"); err != nil {
		log.Print(err)
	}
}

// A message to one user, kept until the user's devices have it.
func ExamplePusher_Push() {
	locator := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"id":"m1","seq":1,"stored":true,"delivered":2,"node":"ws-3"}`)
	}))
	defer locator.Close()

	p, err := client.NewPusher(client.PusherConfig{Locators: []string{locator.URL}, APIKey: "dev"})
	if err != nil {
		log.Fatal(err)
	}
	r, err := p.Push(context.Background(), "alice", map[string]string{"text": "hello"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("stored: %t, delivered to %d sessions\n", r.Stored, r.Delivered)
	// Output: stored: true, delivered to 2 sessions
}

// A message that matters now or not at all.
func ExampleEphemeral() {
	var p *client.Pusher // made with client.NewPusher

	_, err := p.Push(context.Background(), "alice", "bob is typing", client.Ephemeral())
	if err != nil {
		log.Print(err)
	}
}

// What the push is about names it: done twice, it arrives once.
func ExampleIdempotencyKey() {
	var p *client.Pusher // made with client.NewPusher

	r, err := p.Push(context.Background(), "alice", "your parcel has arrived",
		client.IdempotencyKey("parcel-1234-arrived"), client.TTL(24*time.Hour))

	var refused *client.APIError
	if errors.As(err, &refused) && refused.Code == "key_reused" {
		log.Print("another message had this key")
	} else if err == nil && r.Duplicate {
		log.Print("alice has it already")
	}
}

// One call for several messages; each has a result of its own.
func ExamplePusher_PushMany() {
	var p *client.Pusher // made with client.NewPusher

	results, err := p.PushMany(context.Background(), []client.Item{
		{User: "alice", Data: "you won"},
		{User: "bob", Data: "you lost"},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, r := range results {
		fmt.Println(r.User, r.Delivered, r.Err)
	}
}

func ExamplePusher_PushUsers() {
	var p *client.Pusher // made with client.NewPusher

	results, err := p.PushUsers(context.Background(), []string{"alice", "bob"}, "the game starts")
	fmt.Println(len(results), err)
}

func ExamplePusher_Broadcast() {
	var p *client.Pusher // made with client.NewPusher

	r, err := p.Broadcast(context.Background(), "maintenance at ten")
	fmt.Println(r.Delivered, r.Failed, err)
}

// A user writes to another one. The token of the sender says to whom it may.
func ExampleClient_Send() {
	var c *client.Client // made with client.New, and running

	r, err := c.Send(context.Background(), "bob", map[string]string{"text": "hello"})
	var refused *client.SendError
	switch {
	case errors.As(err, &refused) && refused.Code == "forbidden":
		log.Print("alice may not write to bob")
	case err == nil:
		fmt.Println("kept as message", r.Seq)
	}
}

// A client asks the application, which answers through a webhook.
func ExampleClient_Request() {
	var c *client.Client // made with client.New, and running

	answer, err := c.Request(context.Background(), map[string]string{"price_of": "apples"})
	fmt.Println(string(answer), err)
}

// The application's side: the URL of this server is DIALRING_APP of the nodes.
func ExampleWebhook() {
	http.Handle("/dialring", client.Webhook("the secret of DIALRING_APP_SECRET, 32 bytes or more", func(_ context.Context, m client.Sent) (any, error) {
		var ask struct {
			PriceOf string `json:"price_of"`
		}
		if err := json.Unmarshal(m.Data, &ask); err != nil || ask.PriceOf == "" {
			return nil, &client.RefusedError{Detail: "ask for the price of something"}
		}
		return map[string]any{"price": 3, "for": m.User}, nil
	}))
}

// A service that pushes all the time: one request, results in any order.
func ExamplePusher_Stream() {
	var p *client.Pusher // made with client.NewPusher

	s, err := p.Stream(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for i := range 1000 {
			if err := s.Push(client.Item{User: fmt.Sprint("user-", i), Data: i}); err != nil {
				break // Err says why
			}
		}
		_ = s.Close()
	}()
	for r := range s.Results() {
		fmt.Println(r.User, r.Seq, r.Err)
	}
	if err := s.Err(); err != nil {
		log.Print(err, ": to be pushed again: ", s.Unanswered())
	}
}

func ExamplePusher_PushGroup() {
	var p *client.Pusher // made with client.NewPusher

	if err := p.ChangeGroup(context.Background(), "team", []string{"alice", "bob"}, []string{"carol"}); err != nil {
		log.Fatal(err)
	}
	r, err := p.PushGroup(context.Background(), "team", "lunch is ready")
	fmt.Println(r.Members, r.Stored, r.Failed, err)
}

func ExamplePusher_Presence() {
	var p *client.Pusher // made with client.NewPusher

	online, err := p.Presence(context.Background(), []string{"alice", "bob"})
	fmt.Println("alice has", online["alice"], "sessions", err)
}

// Ends all sessions of a user, and has the tokens that it has refused.
func ExamplePusher_Kick() {
	var p *client.Pusher // made with client.NewPusher

	n, err := p.Kick(context.Background(), "alice", client.RevokeTokens())
	fmt.Println(n, err)
}
