package worker;

class Worker {
    public static void main(String[] args) {
        System.out.println("waiting for votes");
    }
}
